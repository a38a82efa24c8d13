"""Run a command with a container engine of its own: `python -m tests.containers.with_engine COMMAND...`.

The command finds the engine by DOCKER_HOST, and `docker compose` on its PATH. testcontainers asks for nothing more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from tests.containers.compose_project import compose_binary, running_checks
from tests.containers.engine import ContainerEngine, missing_tools, new_engine
from tests.containers.stand_ins import make_stand_ins

INTERRUPT_TIMEOUT_SECONDS: Final = 120
INTERRUPTED_WITH_US: Final = ("setpriv", "--pdeathsig", "INT")
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
    """Run the command; returns its exit code. Ctrl-C and SIGTERM interrupt it, and wait until it has cleaned up."""
    if missing := missing_tools():
        print(f"{', '.join(missing)} not found. Run: make containers", file=sys.stderr)
        return 2
    with new_engine() as engine:
        make_stand_ins(engine)
        with environ_of(engine) as environ:
            return run_command(command, environ)


def run_command(command: list[str], environ: Mapping[str, str]) -> int:
    """Return the command's exit code. It is interrupted when we are, also when we are killed."""
    # In a session of its own: it gets one interrupt, ours, and its second would end its own cleaning.
    with subprocess.Popen([*INTERRUPTED_WITH_US, *command], env=environ, start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(INTERRUPT_TIMEOUT_SECONDS)
            return 130
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
