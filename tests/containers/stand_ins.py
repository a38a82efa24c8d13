"""Stand-ins for images of public registries, which can't be pulled everywhere: the same tags, made from packages.

They are stand-ins, and no copies: Debian's own Python takes the place of the one that `python:3.13-slim` compiles.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.containers.engine import BUILD_TIMEOUT_SECONDS, ContainerEngine

PYTHON_TAG: Final = "docker.io/library/python:3.13-slim"
RELEASE: Final = "bookworm"
PACKAGES: Final = "python3,python3-venv,python3-pip,ca-certificates"


def make_python_image(engine: ContainerEngine) -> None:
    """Make the stand-in for the image that the Dockerfile begins with."""
    base = engine.folder / "base"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(base)],
        check=True, capture_output=True, timeout=BUILD_TIMEOUT_SECONDS,
    )  # fmt: skip
    for marker in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()  # the image of that name has no package manager that owns Python's packages
    (base / "usr" / "bin" / "python").symlink_to("python3")
    for package in base.glob("var/cache/apt/archives/*.deb"):
        package.unlink()
    archive = Path(shutil.make_archive(str(engine.folder / "base"), "tar", base))
    shutil.rmtree(base)
    engine.podman("import", str(archive), PYTHON_TAG, timeout_seconds=BUILD_TIMEOUT_SECONDS)
    archive.unlink()
