"""A database, a topic, and Plant's own processes on them: what the fault tests break and look at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import psutil

from database import migrate
from devstack.stack import Stack
from projections.install import install
from projections.session import Session
from runtime.settings import Settings, load_settings
from streams.topics import EVENTS_TOPIC, apply
from tests.support import log_tables
from tests.support.delivering import LOCAL
from tests.support.waiting import DEADLINE_SECONDS, wait_until

PLANT = str(Path(sys.executable).with_name("plant"))


RANGE_OFFSETS = 500
"""Offsets of a range of the log on a stack whose processes may be killed."""

OPEN_SCENES: list[Scene] = []
"""Those whose processes may run; `tests/faults/conftest.py` ends what a failed test has left in one of them."""


class Process:
    """A running `plant …` process; what it says is in a file."""

    def __init__(self, folder: Path, number: int, environ: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        self.name = f"{arguments[0]}-{number}"
        self.log = folder / f"{self.name}.log"
        with self.log.open("wb") as output:
            self._popen = subprocess.Popen([PLANT, *arguments], env=dict(environ), stdout=output, stderr=output)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()

    def logged(self, event: str) -> list[dict[str, object]]:
        """Return the log lines of this event so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event") == event:
                    entries.append(entry)
        return entries

    def freeze(self) -> None:
        """Send SIGSTOP, and return when every thread has stopped."""
        self._popen.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, f"{self.name} stopped")

    def thaw(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait(DEADLINE_SECONDS)

    def stop(self) -> int:
        """Send SIGTERM, wait for an orderly end, and return the exit code."""
        self._popen.terminate()
        return self._popen.wait(DEADLINE_SECONDS)


class Scene:
    """One database and one topic. Processes that are still there at the end are killed."""

    def __init__(self, environ: Mapping[str, str], topic: str, folder: Path) -> None:
        self.topic = topic
        self.folder = folder
        self.environ = {**os.environ, **environ, "PLANT_LOG_FORMAT": "json"}
        self.processes: list[Process] = []

    @property
    def settings(self) -> Settings:
        return load_settings(self.environ)

    def worker(self, **environ: str) -> Process:
        """Start a worker of this topic; it has not joined the group yet."""
        return self._start("worker", "--topic", self.topic, **environ)

    def dispatcher(self, *options: str, **environ: str) -> Process:
        """Start a dispatcher of this topic; it has not joined its group yet."""
        return self._start("dispatcher", "--topic", self.topic, *options, **environ)

    def relay(self, *options: str, **environ: str) -> Process:
        """Start a relay to this topic; it is active or stands by a moment later."""
        return self._start("relay", "--topic", self.topic, *options, **environ)

    def deliverer(self, **environ: str) -> Process:
        """Start a deliverer, whose endpoints may be on this machine."""
        local = {f"PLANT_{name.upper()}": value for name, value in LOCAL.items()}
        return self._start("deliverer", **local, **environ)

    def command(self, *arguments: str) -> Process:
        """Start a command that ends by itself."""
        return self._start(*arguments)

    def ingress(self, port: int = 0) -> tuple[Process, int]:
        """Start an ingress that takes webhooks, and return it with its port."""
        ready = self.folder / f"ready-{len(self.processes)}.json"
        any_port = {"PLANT_INGRESS_ADMIN_ADDRESS": "127.0.0.1:0"}
        process = self._start("ingress", "--port", str(port), "--ready-file", str(ready), **any_port)
        wait_until(lambda: ready.exists() or not process.alive, "ingress is ready")
        assert process.alive, process.log.read_text()
        return process, int(json.loads(ready.read_text())["port"])

    def query(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """One statement as a superuser."""
        session = Session(self.environ["PLANT_DATABASE_SUPERUSER_URL"])
        try:
            return session.query(statement, parameters)
        finally:
            session.close()

    @contextlib.contextmanager
    def locked(self, table: str, mode: str = "SHARE") -> Iterator[None]:
        """Lock a table for the block: who writes to it, or with ACCESS EXCLUSIVE also reads it, waits in the middle."""
        holder = Session(self.environ["PLANT_DATABASE_SUPERUSER_URL"])
        try:
            holder.script("SET idle_in_transaction_session_timeout = 0", "BEGIN", f"LOCK TABLE {table} IN {mode} MODE")
            yield
        finally:
            holder.close()

    def end(self, first: int = 0) -> None:
        """Kill what runs, from the process of this index on."""
        for process in self.processes[first:]:
            if process.alive:
                process.kill()

    def thaw(self) -> None:
        """Let what is frozen go on."""
        for process in self.processes:
            if process.alive:
                process.thaw()

    def _start(self, *arguments: str, **environ: str) -> Process:
        process = Process(self.folder, len(self.processes), {**self.environ, **environ}, arguments)
        self.processes.append(process)
        return process


@contextlib.contextmanager
def scene_of(settings: Settings, superuser_url: str, topic: str, folder: Path) -> Iterator[Scene]:
    """Yield a scene from settings that a fixture made."""
    environ = {f"PLANT_{name.upper()}": str(value) for name, value in msgspec.structs.asdict(settings).items()}
    with open_scene(Scene({**environ, "PLANT_DATABASE_SUPERUSER_URL": superuser_url}, topic, folder)) as scene:
        yield scene


@contextlib.contextmanager
def private_scene(stack: Stack, folder: Path) -> Iterator[Scene]:
    """Yield a scene on a stack whose processes may be killed: its own database, and the topics of the catalogue.

    Ranges of its log are small, so that they fill and are closed while faults come.
    """
    migrate.upgrade(stack.environ["PLANT_DATABASE_OWNER_URL"])
    install(stack.environ["PLANT_DATABASE_OWNER_URL"])
    log_tables.set_range_offsets(stack.environ["PLANT_DATABASE_OWNER_URL"], RANGE_OFFSETS)
    short = {"PLANT_TOPIC_PARTITIONS": "4", "PLANT_WORKER_SESSION_TIMEOUT_SECONDS": "5"}
    scene = Scene({"PLANT_HOME": str(folder), **stack.environ, **short}, EVENTS_TOPIC, folder)
    asyncio.run(apply(scene.settings))
    with open_scene(scene):
        yield scene


@contextlib.contextmanager
def nothing_left_behind(failed: Callable[[], bool]) -> Iterator[None]:
    """After a block that failed, kill what it has started in open scenes, and let what it has frozen there go on.

    What those scenes had before goes on, and so does what belongs to a scene that the block has opened.
    """
    before = {scene: len(scene.processes) for scene in OPEN_SCENES}
    yield
    if failed():
        for scene, count in before.items():
            scene.end(first=count)
            scene.thaw()


@contextlib.contextmanager
def open_scene(scene: Scene) -> Iterator[Scene]:
    """Yield a scene whose processes are killed at the end."""
    OPEN_SCENES.append(scene)
    try:
        yield scene
    finally:
        OPEN_SCENES.remove(scene)
        scene.end()
