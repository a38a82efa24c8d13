"""A stack that the command line itself starts: fixtures `home` and `plant`, and who still runs there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from devstack.kafka import JAVA_OPTIONS
from devstack.stack import Stack
from tests.support.services import runs_folder

BIN = Path(sys.executable).parent
PLANT = str(BIN / "plant")
RUN_TIMEOUT_SECONDS = 900
"""A whole demo, or a tutorial, on a machine with other work."""

Plant = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A PLANT_HOME of this module's own; `services.py` ends what is left of it should this run be killed."""
    folder = runs_folder() / str(os.getpid())
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    own = folder / request.module.__name__
    yield own
    Stack(own).down(delete_data=True)
    shutil.rmtree(own, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def environ_of(home: Path, **changes: str) -> dict[str, str]:
    """Return an environment without any setting of Plant but this home, and with `plant` on the path.

    Java has the options of brokers that live for a short time, which takes half of its processor time.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLANT_") or name == JAVA_OPTIONS}
    return {**clean, "PLANT_HOME": str(home), "PATH": f"{BIN}:{clean['PATH']}", **changes}


@pytest.fixture(scope="module")
def plant(home: Path) -> Plant:
    """Runs `plant …` to its end."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PLANT, *arguments],
            env=environ_of(home, **changes),
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_TIMEOUT_SECONDS,
        )

    return run


def running_in(home: Path) -> list[str]:
    """Return the command lines of all processes that work for this home."""
    lines = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and (
                str(home) in line or process.environ().get("PLANT_HOME") == str(home)
            ):
                lines.append(line)
    return lines
