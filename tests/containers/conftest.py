"""The image, built once for all tests of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.engine import ContainerEngine, missing_tools
from tests.containers.stand_ins import make_stand_ins

TAG = "plant:development"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerEngine]:
    """A container engine that has built the image, and the stand-ins; its folder is removed in the end.

    PLANT_TEST_IMAGES_FOLDER names one that is kept, so that the stand-ins are made once.
    """
    missing = missing_tools()
    assert not missing, f"install {', '.join(missing)}: make containers says how"
    kept = os.environ.get("PLANT_TEST_IMAGES_FOLDER")
    made = ContainerEngine(Path(kept or tmp_path_factory.mktemp("containers")), kept=bool(kept))
    try:
        make_stand_ins(made)
        made.build(TAG)
        yield made
        assert made.left() == []
    finally:
        made.close()
