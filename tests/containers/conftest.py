"""The image, built once for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import ContainerEngine, missing_tools
from tests.containers.stand_ins import make_python_image

TAG = "plant:development"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerEngine]:
    """A container engine that has built the image; its folder is removed in the end."""
    missing = missing_tools()
    assert not missing, f"install {', '.join(missing)}: make containers says how"
    made = ContainerEngine(Path(tmp_path_factory.mktemp("containers")))
    try:
        make_python_image(made)
        made.build(TAG)
        yield made
    finally:
        made.close()
