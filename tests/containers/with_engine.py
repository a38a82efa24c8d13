"""Run a command with a container engine of its own: `python -m tests.containers.with_engine COMMAND...`.

The command finds the engine by DOCKER_HOST, and `docker compose` on its PATH. testcontainers asks for nothing more.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.containers.compose_project import compose_binary, running_checks
from tests.containers.engine import ContainerEngine
from tests.containers.stand_ins import make_stand_ins

DOCKER = """\
#!/bin/sh
# The part of Docker's command line that testcontainers needs.
[ "$1" = compose ] || { echo "docker: only compose is here" >&2; exit 1; }
shift
exec {compose} "$@"
"""


@contextlib.contextmanager
def environ_of(engine: ContainerEngine) -> Iterator[Mapping[str, str]]:
    """Yield the environment of a command that uses the engine; health checks run as long as the block lasts."""
    programs = engine.folder / "programs"
    programs.mkdir(exist_ok=True)
    docker = programs / "docker"
    docker.write_text(DOCKER.replace("{compose}", str(compose_binary())), encoding="utf-8")
    docker.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    with engine.service() as docker_host, running_checks(engine):
        yield {**engine.environ, "DOCKER_HOST": docker_host, "PATH": path}


def main(command: list[str]) -> int:
    """Run the command; returns its exit code."""
    kept = os.environ.get("PLANT_TEST_IMAGES_FOLDER")
    with tempfile.TemporaryDirectory(prefix="plant-containers-") as scratch:
        engine = ContainerEngine(Path(kept or scratch), kept=bool(kept))
        try:
            make_stand_ins(engine)
            with environ_of(engine) as environ:
                return subprocess.run(command, env=environ, check=False).returncode
        finally:
            engine.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
