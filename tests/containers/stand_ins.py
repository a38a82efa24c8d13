"""Stand-ins for images of public registries, which can't be pulled everywhere: the same tags, made from packages.

They are stand-ins, and no copies: Debian's own Python takes the place of the one that `python:3.13-slim` compiles, and
the programs of the local stack that of those in the images of Kafka and Postgres. What differs is listed in
docs/how-to/containers.md.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from devstack.kafka import java
from devstack.kafka_jars import KAFKA_VERSION, ensure_jars
from devstack.postgres_binaries import package_folder
from devstack.progress import Silent
from tests.containers.engine import BUILD_TIMEOUT_SECONDS, ContainerEngine
from tests.containers.go_programs import go_program
from tests.support import apicurio

PYTHON_TAG: Final = "docker.io/library/python:3.13-slim"
KAFKA_TAG: Final = f"docker.io/apache/kafka:{KAFKA_VERSION}"
POSTGRES_TAG: Final = "docker.io/pgvector/pgvector:pg18"
REGISTRY_TAG: Final = f"docker.io/apicurio/apicurio-registry-mem:{apicurio.VERSION}"
TEMPORAL_TAG: Final = "docker.io/temporalio/temporal:1.9.1"
TEMPORAL_PACKAGE: Final = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
"""The last that Go builds as a module: 1.9.1 has a part which is none."""
RELEASE: Final = "bookworm"
PACKAGES: Final = "python3,python3-venv,python3-pip,ca-certificates"
IMAGES: Final = Path(__file__).parent / "images"


def make_stand_ins(engine: ContainerEngine) -> None:
    """Make those that the engine lacks of what starts without a profile."""
    _make_missing(
        engine, {PYTHON_TAG: make_python_image, POSTGRES_TAG: make_postgres_image, KAFKA_TAG: make_kafka_image}
    )


def make_profile_stand_in(engine: ContainerEngine, tag: str) -> None:
    """Make what starts where its profile is named, if the engine lacks it."""
    images = {REGISTRY_TAG: make_registry_image, TEMPORAL_TAG: make_temporal_image}
    _make_missing(engine, {tag: images[tag]})


def _make_missing(engine: ContainerEngine, images: Mapping[str, Callable[[ContainerEngine], None]]) -> None:
    for tag, make in images.items():
        if not engine.has(tag):
            make(engine)


def make_python_image(engine: ContainerEngine) -> None:
    """Make the stand-in for the image that the Dockerfile begins with."""
    base = engine.folder / "base"
    shutil.rmtree(base, ignore_errors=True)  # of a run that was interrupted, in a folder that is kept
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


def make_kafka_image(engine: ContainerEngine) -> None:
    """Make the stand-in for Kafka's image, on the one for Python's."""
    context = _context(engine, "kafka")
    jars = ensure_jars(Silent())
    shutil.copytree(jars, context / "jars", ignore=lambda _, names: [each for each in names if ".jar" not in each])
    ensure_jars(Silent(), context / "jars", IMAGES / "kafka" / "jars.lock")
    shutil.copytree(java().parent.parent, context / "java", symlinks=True)
    _build(engine, context, KAFKA_TAG)


def make_postgres_image(engine: ContainerEngine) -> None:
    """Make the stand-in for the image of Postgres with pgvector, on the one for Python's."""
    context, package = _context(engine, "postgres"), package_folder()
    install, libraries = package / "pginstall18", f"{package.name}.libs"
    # The programs find their libraries by this layout.
    shutil.copytree(install, context / "install" / package.name / install.name, symlinks=True)
    if (package.parent / libraries).exists():
        shutil.copytree(package.parent / libraries, context / "install" / libraries)
    _build(engine, context, POSTGRES_TAG)


def make_registry_image(engine: ContainerEngine) -> None:
    """Make the stand-in for Apicurio's image, on the one for Python's."""
    context = _context(engine, "registry")
    with tarfile.open(apicurio.ensure_archive()) as archive:
        archive.extractall(context / "deployments", filter="data")
    shutil.copytree(java().parent.parent, context / "java", symlinks=True)
    _build(engine, context, REGISTRY_TAG)


def make_temporal_image(engine: ContainerEngine) -> None:
    """Make the stand-in for Temporal's image, on the one for Python's."""
    context = _context(engine, "temporal")
    shutil.copy(go_program("temporal-v1.5.1/temporal", TEMPORAL_PACKAGE), context)
    _build(engine, context, TEMPORAL_TAG)


def _context(engine: ContainerEngine, name: str) -> Path:
    shutil.rmtree(engine.folder / name, ignore_errors=True)
    return Path(shutil.copytree(IMAGES / name, engine.folder / name))


def _build(engine: ContainerEngine, context: Path, tag: str) -> None:
    arguments = ("build", "--network", "none", "--file", str(context / "Containerfile"), "--tag", tag, str(context))
    engine.podman(*arguments, timeout_seconds=BUILD_TIMEOUT_SECONDS)
    shutil.rmtree(context)
