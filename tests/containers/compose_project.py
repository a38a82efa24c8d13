"""The compose file brought up by Docker Compose on an engine of the tests' own.

podman runs health checks by systemd's timers. Where there is none, nobody runs them, and `service_healthy` would be
waited for without end: here a thread asks for each check, again and again. A Docker engine runs them itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from devstack.processes import choose_port
from tests.containers.engine import ContainerEngine
from tests.containers.go_programs import go_program
from tests.support import ROOT
from tests.support.services import COMPOSE_FILE

COMPOSE_MODULE: Final = "github.com/docker/compose/v5/cmd"
COMPOSE_VERSION: Final = "v5.0.2"
UP_TIMEOUT_SECONDS: Final = 900
CHECK_EVERY_SECONDS: Final = 1.0
NANOSECONDS: Final = 1e9
PORTS: Final = (
    "KAFKA", "POSTGRES", "INGRESS", "INGRESS_ADMIN", "API", "API_ADMIN", "REGISTRY", "TEMPORAL", "TEMPORAL_UI",
)  # fmt: skip
"""What the file publishes, by the variables PLANT_…_PORT."""
CGROUPS: Final = Path("/sys/fs/cgroup")


def compose_binary() -> Path:
    """Return Docker Compose, built from its pinned sources once a user."""
    return go_program(f"compose-{COMPOSE_VERSION}/docker-compose", f"{COMPOSE_MODULE}@{COMPOSE_VERSION}")


class ComposeProject:
    """A project of the real compose file. Its name and ports are its own."""

    def __init__(self, engine: ContainerEngine, docker_host: str, profiles: str) -> None:
        self.engine = engine
        self.name = f"plant-{secrets.token_hex(3)}"
        self.ports = dict[str, int]()
        for name in PORTS:
            self.ports[name] = choose_port(None, set(self.ports.values()))
        self._command = (str(compose_binary()), "--project-name", self.name, "--file", str(ROOT / COMPOSE_FILE))
        published = {f"PLANT_{name}_PORT": str(port) for name, port in self.ports.items()}
        self._environ = {
            **engine.environ, **published, "DOCKER_HOST": docker_host, "COMPOSE_PROFILES": profiles,
        }  # fmt: skip

    def up(self, *services: str) -> None:
        """Bring services up, all by default, and wait until each is ready whose readiness another waits for."""
        with running_checks(self.engine):
            self.compose("up", "--detach", "--no-build", "--pull", "never", *services)

    def compose(self, *arguments: str, timeout_seconds: float = UP_TIMEOUT_SECONDS, check: bool = True) -> str:
        """Run Docker Compose; returns its stdout. Raises AssertionError with what it said."""
        done = subprocess.run(
            [*self._command, *arguments], env=self._environ, capture_output=True, text=True, check=False,
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
def running_project(engine: ContainerEngine, *services: str, profiles: str = "") -> Iterator[ComposeProject]:
    """Yield a project whose services are up, all by default; it is taken down in the end, and nothing of it is left."""
    with engine.service() as docker_host:
        project = ComposeProject(engine, docker_host, profiles)
        try:
            project.up(*services)
            yield project
        finally:
            project.compose("down", "--volumes", "--timeout", "60", check=False)
    assert engine.left() == []


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
    due_at = dict[str, float]()
    while not ended.wait(CHECK_EVERY_SECONDS):
        running = engine.podman("ps", "--format", "{{.Names}} {{.StartedAt}} {{.Status}}", check=False).stdout
        for name, started_at, status in (line.split(" ", 2) for line in running.splitlines()):
            if ended.is_set() or "(healthy)" in status or time.monotonic() < due_at.get(name, 0.0):
                continue
            pause_seconds = _pause_between_checks(engine, name, time.time() - int(started_at))
            if pause_seconds is not None:
                engine.podman("healthcheck", "run", name, check=False)
            due_at[name] = time.monotonic() + (pause_seconds or 0.0)


def _pause_between_checks(engine: ContainerEngine, name: str, age_seconds: float) -> float | None:
    """Return how long to wait after a check; None where there is none.

    Failures count once a container's start period is over. From then on it is asked at its own interval: sooner, and a
    busy machine would make it unhealthy, which ends `up`.
    """
    done = engine.podman("inspect", "--format", "{{json .Config.Healthcheck}}", name, check=False)
    check = json.loads(done.stdout or "null")
    if not check:
        return None
    starts = age_seconds < check.get("StartPeriod", 0) / NANOSECONDS
    return CHECK_EVERY_SECONDS if starts else float(check["Interval"] / NANOSECONDS)
