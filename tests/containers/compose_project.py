"""The compose file brought up by Docker Compose on an engine of the tests' own.

podman runs health checks by systemd's timers. Where there is none, nobody runs them, and `service_healthy` would be
waited for without end: here a thread asks for each check, again and again. A Docker engine runs them itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.containers.engine import ContainerEngine
from tests.support import ROOT
from tests.support.services import COMPOSE_FILE

COMPOSE_MODULE: Final = "github.com/docker/compose/v5/cmd"
COMPOSE_VERSION: Final = "v5.0.2"
QUICKLY_BUILT: Final = ("-gcflags=all=-N -l", "-ldflags=-s -w")
"""Not optimised: it runs for seconds, and its build takes minutes."""
BUILD_TIMEOUT_SECONDS: Final = 1800
UP_TIMEOUT_SECONDS: Final = 900
CHECK_EVERY_SECONDS: Final = 1.0
CGROUPS: Final = Path("/sys/fs/cgroup")


def compose_binary() -> Path:
    """Return Docker Compose, built from its pinned sources once a user. What Go has fetched and compiled is removed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plant" / f"compose-{COMPOSE_VERSION}"
    binary = cache / "docker-compose"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            environ = {
                **os.environ, "GOBIN": scratch, "GOPATH": f"{scratch}/path", "GOCACHE": f"{scratch}/cache",
                "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -modcacherw",
            }  # fmt: skip
            command = ["go", "install", *QUICKLY_BUILT, f"{COMPOSE_MODULE}@{COMPOSE_VERSION}"]
            subprocess.run(command, check=True, env=environ, timeout=BUILD_TIMEOUT_SECONDS, capture_output=True)
            Path(scratch, "cmd").replace(binary)
    return binary


class ComposeProject:
    """A project of the real compose file. Its name and ports are its own."""

    def __init__(self, engine: ContainerEngine, name: str, docker_host: str, environ: Mapping[str, str]) -> None:
        self.engine = engine
        self.name = name
        self._command = (str(compose_binary()), "--project-name", name, "--file", str(ROOT / COMPOSE_FILE))
        self.environ = {**engine.environ, "DOCKER_HOST": docker_host, **environ}

    def compose(self, *arguments: str, timeout_seconds: float = UP_TIMEOUT_SECONDS, check: bool = True) -> str:
        """Run Docker Compose; returns its stdout. Raises AssertionError with what it said."""
        done = subprocess.run(
            [*self._command, *arguments], env=self.environ, capture_output=True, text=True, check=False,
            timeout=timeout_seconds,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"compose {' '.join(arguments)}: {done.stderr[-3000:]}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        """Return the last lines of each container's log."""
        names = self.engine.podman("ps", "--all", "--format", "{{.Names}}").stdout.split()
        tails = (self.engine.podman("logs", "--tail", "15", name, check=False) for name in names)
        return "\n".join(f"== {name}\n{tail.stdout}{tail.stderr}" for name, tail in zip(names, tails, strict=True))

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self.name}-{service}-1"

    def state(self, service: str) -> dict[str, Any]:
        """Return the state of a service's container, as Docker's API has it."""
        found = json.loads(self.engine.podman("inspect", self.container(service)).stdout)[0]
        state: dict[str, Any] = found["State"]
        return state

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a service's container; returns its stdout.

        By podman itself: its monitor of what Docker's API has executed stays for five minutes afterwards.
        """
        return self.engine.podman("exec", self.container(service), *command).stdout

    def restarts(self, service: str) -> int:
        """Return how often the engine has started a service's container again by its restart policy."""
        return int(self.engine.podman("inspect", "--format", "{{.RestartCount}}", self.container(service)).stdout)

    def kill(self, service: str) -> None:
        """End a service's first process as a crash would: the engine was not asked to stop it."""
        pid = self.state(service)["Pid"]
        assert pid > 0, f"{service} does not run"  # 0 would be all processes of our own group
        os.kill(pid, signal.SIGKILL)

    def memory(self, service: str) -> tuple[int, int]:
        """Return the most bytes that a service's container has held, and its limit, as the kernel counts them."""
        cgroups = Path(f"/proc/{self.state(service)['Pid']}/cgroup").read_text(encoding="utf-8").splitlines()
        by_controller = {line.split(":")[1]: line.split(":", 2)[2].lstrip("/") for line in cgroups}
        if "memory" in by_controller:
            folder, files = CGROUPS / "memory" / by_controller["memory"], ("max_usage_in_bytes", "limit_in_bytes")
            most, limit = (int((folder / f"memory.{name}").read_text(encoding="utf-8")) for name in files)
        else:
            folder = CGROUPS / by_controller[""]
            most, limit = (int((folder / f"memory.{name}").read_text(encoding="utf-8")) for name in ("peak", "max"))
        return most, limit

    def is_healthy(self, service: str) -> bool:
        """Tell whether the service's own check says so now."""
        done = self.engine.podman("healthcheck", "run", self.container(service), check=False)
        return done.returncode == 0


@contextlib.contextmanager
def running_checks(engine: ContainerEngine) -> Iterator[None]:
    """Have the health checks of containers run as long as the block lasts, until each is healthy."""
    ended = threading.Event()
    thread = threading.Thread(target=_run_checks, args=(engine, ended), name="health-checks")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _run_checks(engine: ContainerEngine, ended: threading.Event) -> None:
    while not ended.wait(CHECK_EVERY_SECONDS):
        running = engine.podman("ps", "--format", "{{.Names}} {{.Status}}", check=False).stdout
        for line in running.splitlines():
            name, _, status = line.partition(" ")
            if not ended.is_set() and "(healthy)" not in status:
                engine.podman("healthcheck", "run", name, check=False)
