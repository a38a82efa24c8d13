"""The image, built once for all tests of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.containers.engine import UNABLE, ContainerEngine, missing_tools, new_engine
from tests.containers.probe import reason_to_skip
from tests.containers.stand_ins import make_stand_ins

TAG = "plant:development"
PROBE = "PLANT_TEST_CONTAINERS_PROBE"
"""Set to 1: end with UNABLE where this machine can't run containers, before anything of Plant's is built."""
VERSION, REVISION = "1.2.3", "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""What a build is told, for the image's labels."""


@pytest.fixture(scope="session")
def engine() -> Iterator[ContainerEngine]:
    """A container engine that has built the image, and the stand-ins; nothing of it is left in the end."""
    missing = missing_tools()
    assert not missing, f"install {', '.join(missing)}: make containers says how"
    with new_engine() as made:
        if os.environ.get(PROBE) and (reason := reason_to_skip(made)):
            pytest.exit(reason, returncode=UNABLE)
        make_stand_ins(made)
        made.build(TAG, VERSION=VERSION, REVISION=REVISION)
        yield made
        assert made.left() == []
