"""Programs built from pinned Go modules, once a user. What Go has fetched and compiled for them is removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

BUILD_TIMEOUT_SECONDS: Final = 1800
QUICKLY_BUILT: Final = ("-gcflags=all=-N -l", "-ldflags=-s -w")
"""Not optimised: they run for seconds, and their builds take minutes."""
ENDED_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
"""Go ends when its parent is killed; it would else go on filling a folder that nobody removes."""


def go_program(name: str, package: str) -> Path:
    """Return the program of a package and version, by this name in the user's cache.

    A second build waits for the first. What a killed one has left is removed by the next.
    """
    program = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plant" / name
    scratch = program.parent / "build"
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(scratch, ignore_errors=True)
        if not program.exists():
            try:
                _install(package, scratch).replace(program)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return program


def _install(package: str, scratch: Path) -> Path:
    """Build the package with all that Go writes in a folder; return the one program that it has."""
    environ = {
        **os.environ, "GOBIN": str(scratch / "bin"), "GOPATH": str(scratch / "path"),
        "GOCACHE": str(scratch / "cache"), "GOTMPDIR": str(scratch), "CGO_ENABLED": "0",
        "GOFLAGS": "-buildvcs=false -modcacherw",
    }  # fmt: skip
    scratch.mkdir()
    command = [*ENDED_WITH_US, "go", "install", *QUICKLY_BUILT, package]
    subprocess.run(command, check=True, env=environ, timeout=BUILD_TIMEOUT_SECONDS, capture_output=True)
    (program,) = (scratch / "bin").iterdir()
    return program
