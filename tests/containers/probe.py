"""Whether this machine can run containers as the tests do, found out with a first one, before anything of Plant's.

What is missing here is the machine's: no mirror of Debian, no right to make namespaces, no memory controller. CI skips
the tests then, and says why. Whatever fails after it is Plant's.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Callable
from typing import Final

from devstack.processes import choose_port
from tests.containers.compose_project import compose_binary
from tests.containers.engine import INDEX_VARIABLES, ContainerEngine
from tests.containers.stand_ins import PYTHON_TAG, make_python_image
from tests.support import ROOT
from tests.support.waiting import wait_until

NAME: Final = "probe"
PORT: Final = 8000
ANSWER_TIMEOUT_SECONDS: Final = 60
SERVER: Final = (
    "--read-only", "--tmpfs", "/tmp:size=16m", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true",
    "--memory", "128m", "--pids-limit", "64", "--health-cmd", "python --version",
)  # fmt: skip
"""What the compose file asks of an engine for each of Plant's services."""
ASK: Final = f"import urllib.request as r; print(r.urlopen('http://{NAME}:{PORT}', timeout=20).status)"
FETCH: Final = "pip download --quiet --no-cache-dir --require-hashes --no-deps --dest /tmp -r /plant/uv.txt"


def reason_to_skip(engine: ContainerEngine) -> str | None:
    """Return why the tests can't run here, or None. Makes the stand-in for Python's image, which they use too."""
    steps: tuple[tuple[str, Callable[[ContainerEngine], object]], ...] = (
        ("Debian's packages can't be unpacked to a base image", _base_image),
        ("a first container can't be run", _container),
        ("containers can't be reached, or can't reach each other", _network),
        ("Docker Compose can't be built", lambda _: compose_binary()),
        ("a container can't fetch from the package index", _package_index),
    )
    for what, step in steps:
        try:
            step(engine)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            return f"{what} ({_last_line(error)})"
        finally:
            engine.podman("rm", "--force", NAME, check=False)
            engine.podman("network", "rm", "--force", NAME, check=False)
    return None


def _base_image(engine: ContainerEngine) -> None:
    if not engine.has(PYTHON_TAG):
        make_python_image(engine)


def _container(engine: ContainerEngine) -> None:
    engine.run(PYTHON_TAG, "true", options=("--network", "none"))


def _network(engine: ContainerEngine) -> None:
    port = choose_port(None, set())
    engine.podman("network", "create", NAME)
    engine.podman(
        "run", "--detach", "--name", NAME, "--network", NAME, "--publish", f"127.0.0.1:{port}:{PORT}", *SERVER,
        PYTHON_TAG, "python", "-m", "http.server", str(PORT),
    )  # fmt: skip
    wait_until(lambda: _answers(port), "the first container answers", ANSWER_TIMEOUT_SECONDS)
    engine.podman("healthcheck", "run", NAME)
    engine.run(PYTHON_TAG, "python", "-c", ASK, options=("--network", NAME))


def _answers(port: int) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}", timeout=5):
            return True
    except OSError:
        return False


def _package_index(engine: ContainerEngine) -> None:
    variables = [f"--env={name}={os.environ[name]}" for name in INDEX_VARIABLES if os.environ.get(name)]
    options = ("--network", "host", "--volume", f"{ROOT / '.ci'}:/plant:ro", *engine.certificates(), *variables)
    engine.run(PYTHON_TAG, *FETCH.split(), options=options)


def _last_line(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return (text.strip().splitlines() or [type(error).__name__])[-1][:300]
