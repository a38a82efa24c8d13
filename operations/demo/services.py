"""The services of the demo: the local stack, and a process each.

They are `plant ingress`, `plant worker`, `plant api`, `plant dispatcher` and `plant deliverer`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from devstack import processes
from devstack.errors import tail
from devstack.processes import ProcessRecord
from devstack.progress import Progress
from devstack.stack import Stack
from operations.demo.errors import DemoFailed, ServiceEnded
from operations.local_stack import prepare_stack, stack_here

READY_TIMEOUT_SECONDS: Final = 60.0
END_TIMEOUT_SECONDS: Final = 20.0
COMMAND_TIMEOUT_SECONDS: Final = 60.0
LOCAL_ENDPOINTS: Final = {
    "PLANT_DELIVERIES_SCHEMES": "http,https",
    "PLANT_DELIVERIES_PORTS": "1-65535",
    "PLANT_DELIVERIES_ALLOWED_NETWORKS": "127.0.0.1",
}
"""Settings with which an endpoint may be on this machine."""
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoServices:
    """The stack and the processes of one demo; `environ` has the addresses that a child process needs."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.logs = stack.home / "logs"
        self._services: dict[str, ProcessRecord] = {}
        self._log_starts_bytes: dict[str, int] = {}

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, **self.stack.environ, **LOCAL_ENDPOINTS, "PLANT_HOME": str(self.stack.home)}

    def start(self, name: str, *arguments: str) -> None:
        """Start `plant NAME …` in the background."""
        log = self._log(name)
        self._log_starts_bytes[name] = log.stat().st_size if log.exists() else 0
        self._services[name] = processes.spawn(
            [plant_program(), name, *arguments], log=log, cwd=Path.cwd(), environ=self.environ
        )

    def start_server(self, name: str) -> None:
        """Start `plant NAME`, which serves HTTP, in the background, on a free port."""
        self.start(name, "--port", "0", "--ready-file", str(self._ready_file(name)))

    def url(self, name: str) -> str:
        """Return the address of a server that was started, once it takes requests."""
        ready = self._ready_file(name)
        record = self._services[name]
        if not processes.wait_ready(ready.exists, record, timeout_seconds=READY_TIMEOUT_SECONDS):
            self.alive()
            raise DemoFailed(
                f"plant {name} was not ready in time.",
                why=f"It took longer than {READY_TIMEOUT_SECONDS:.0f} s.",
                next_step=tail(self._log(name)),
            )
        address: dict[str, Any] = msgspec.json.decode(ready.read_bytes())
        return str(address["url"])

    def alive(self) -> None:
        """Raise ServiceEnded when one of them has ended."""
        for name, record in self._services.items():
            if not processes.is_running(record):
                raise ServiceEnded(
                    f"plant {name} has ended.", why=self._last_error(name), next_step=tail(self._log(name))
                )

    def call(self, *arguments: str) -> str:
        """Run `plant …` to its end and return its stdout. Raises DemoFailed with its stderr."""
        done = subprocess.run(
            [plant_program(), *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_SECONDS,
            start_new_session=True,
        )
        if done.returncode != 0:
            command = " ".join(("plant", *arguments))
            raise DemoFailed(f"The command failed: {command}", why=done.stderr.strip(), next_step="plant doctor")
        return done.stdout

    def end(self) -> None:
        """End the processes that were started, in order, so that accepted events are answered and projected first."""
        for record in self._services.values():
            processes.send(record, signal.SIGTERM)
        for record in self._services.values():
            if not processes.wait_gone(record, timeout_seconds=END_TIMEOUT_SECONDS):
                processes.kill(record)
        self._services.clear()

    def _last_error(self, name: str) -> str:
        """Return the error that the process ended with, or its last line, without those of earlier runs."""
        log = self._log(name).read_bytes()
        start_bytes = self._log_starts_bytes[name]
        lines = log[start_bytes if len(log) > start_bytes else 0 :].decode(errors="replace").strip().splitlines()
        errors = [line.strip() for line in lines if line.lstrip().startswith(("error: ", "why: "))]
        return " ".join(errors or lines[-1:]) or "It logged nothing."

    def _ready_file(self, name: str) -> Path:
        return self.stack.home / "demo" / f"{name}.json"

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


def plant_program() -> Path:
    """Return the command `plant` of the environment that this process runs in."""
    return Path(sys.executable).with_name("plant")


@contextlib.contextmanager
def running_services(progress: Progress) -> Iterator[tuple[DemoServices, bool]]:
    """Yield the services of a running, migrated stack, and whether it was up already: then it stays up.

    Whatever the demo started has ended when the block has, also on Ctrl-C, SIGTERM, SIGHUP and errors.
    """
    stack = stack_here(progress=progress)
    with _alone(stack.home), _interrupted_by_any_signal():
        was_up = any(service.state != "stopped" for service in stack.status())
        own = DemoServices(stack)
        try:
            stack.up(lambda environ: prepare_stack(environ, progress))
            yield own, was_up
        finally:
            with _undisturbed():
                progress.say("Stopping ingress, the worker and the API" if was_up else "Stopping everything")
                own.end()
                if not was_up:
                    stack.down()


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Allow one demo at a time in a folder: the first one to end would stop the other's stack."""
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o755)  # Whatever the umask: the system user that runs Postgres for root walks through it.
    folder = home / "demo"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(
                "A demo is running here already.",
                why=f"It works in {home}.",
                next_step="PLANT_HOME=/tmp/plant2 plant demo",
            ) from None
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _interrupted_by_any_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) end the demo as Ctrl-C does."""
    with _handling(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore a second Ctrl-C while cleaning up; every step of that has its own deadline."""
    with _handling(lambda _number, _frame: None):
        yield


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    before: Mapping[signal.Signals, Any] = {number: signal.signal(number, handler) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
