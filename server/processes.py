"""Several ingress processes on one port: the kernel spreads connections over them, and one parent replaces dead ones.

Each is a whole ingress process with its own event loop, producer and deduplication cache. Copies of a request that
reach two of them at once become two records, and the partition's owner applies one. A process that dies is replaced.
When the parent ends, for any reason, they end too: they hold the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from runtime.logging import get_logger
from server.errors import ProcessEnded

log = get_logger(__name__)

START_TIMEOUT_SECONDS: Final = 60.0
END_TIMEOUT_SECONDS: Final = 30.0
POLL_EVERY_SECONDS: Final = 0.05
RESTART_DELAY_SECONDS: Final = 1.0
RESTART_DELAY_MAX_SECONDS: Final = 60.0
STEADY_SECONDS: Final = 60.0
"""A process that has run for so long did not die of its start: the delays begin again."""


class ProcessStart(NamedTuple):
    """The arguments of a process at its start: its number, its end of the parent's pipe, and its ready file."""

    number: int
    pipe: int
    ready_file: Path


Command = Callable[[ProcessStart], tuple[list[str], Mapping[str, str]]]
"""Arguments and environment of a process."""

WhenReady = Callable[[Path], None]


class Restart(NamedTuple):
    """The restart of a process: how often it has died in a row, and when it starts again, by the monotonic clock."""

    deaths: int
    at_seconds: float


def restart_delay_seconds(deaths: int) -> float:
    """Return how long to wait before a process starts again that has died so often, one time after another.

    >>> [restart_delay_seconds(deaths) for deaths in (1, 2, 3, 7, 1_000)]
    [1.0, 2.0, 4.0, 60.0, 60.0]
    """
    return min(RESTART_DELAY_MAX_SECONDS, RESTART_DELAY_SECONDS * 2.0 ** min(deaths - 1, 16))


class Processes:
    """The processes of one port. Make it, then :meth:`run`."""

    def __init__(self, count: int, command: Command, folder: Path) -> None:
        self._count = count
        self._command = command
        self._folder = folder
        self._pipe = os.pipe()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started_at_seconds: dict[int, float] = {}
        self._restarts: dict[int, Restart] = {}
        self._ending = False

    def run(self, when_ready: WhenReady) -> None:
        """Start all, the first one first, so that an error at its start is printed once. Return when they have ended.

        Call `when_ready` with the first one's ready file once each of them has written its own, however late: without
        Kafka none does. Raises ProcessEnded where one could not be started.
        """
        with self._signals():
            try:
                for number in range(self._count):
                    self._start(number)
                    self._wait_ready(number)
                announced = False
                while not self._ending:
                    if not announced and self._all_ready():
                        announced = True
                        when_ready(self._ready_file(0))
                    self._replace_dead()
                    time.sleep(POLL_EVERY_SECONDS)
            finally:
                self._end()

    def _start(self, number: int) -> None:
        arguments, environ = self._command(ProcessStart(number, self._pipe[0], self._ready_file(number)))
        self._ready_file(number).unlink(missing_ok=True)
        self._started_at_seconds[number] = time.monotonic()
        self._running[number] = subprocess.Popen(
            arguments, env={**os.environ, **environ}, pass_fds=(self._pipe[0],), start_new_session=True
        )

    def _wait_ready(self, number: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._ending and not self._ready_file(number).exists():
            code = self._running[number].poll()
            if code is not None:
                raise ProcessEnded(why=f"It ended with exit code {code}.", next_step="plant ingress --processes 1")
            if time.monotonic() > deadline:
                return  # Kafka or Postgres is not reachable: the process waits for them, the parent no longer
            time.sleep(POLL_EVERY_SECONDS)

    def _all_ready(self) -> bool:
        return all(self._ready_file(number).exists() for number in range(self._count))

    def _replace_dead(self) -> None:
        """Start dead processes again, each after a delay that doubles while it does not stay alive."""
        now_seconds = time.monotonic()
        for number, process in list(self._running.items()):
            code = process.poll()
            if code is None or self._ending:
                continue
            restart = self._restarts.get(number)
            if restart is None or restart.at_seconds < self._started_at_seconds[number]:
                restart = self._restarts[number] = self._next_restart(number, restart, now_seconds)
                delay_seconds = round(restart.at_seconds - now_seconds, 3)
                log.warning(
                    "process.died", number=number, exit_code=code, deaths=restart.deaths, delay_seconds=delay_seconds
                )
            if now_seconds >= restart.at_seconds:
                self._start(number)

    def _next_restart(self, number: int, before: Restart | None, now_seconds: float) -> Restart:
        steady = now_seconds - self._started_at_seconds[number] >= STEADY_SECONDS
        deaths = 1 if before is None or steady else before.deaths + 1
        return Restart(deaths, now_seconds + restart_delay_seconds(deaths))

    def _end(self) -> None:
        self._ending = True
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + END_TIMEOUT_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for end in self._pipe:
            os.close(end)

    def _ready_file(self, number: int) -> Path:
        return self._folder / f"ready-{number}.json"

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def end(number: int, frame: FrameType | None) -> None:
            self._ending = True

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_several(count: int, command: Command, when_ready: WhenReady) -> None:
    """Run so many processes until SIGTERM or SIGINT; then they answer what they accepted. Raises ProcessEnded.

    `when_ready` is called with the first one's ready file, once all of them take webhooks.
    """
    with tempfile.TemporaryDirectory() as folder:
        Processes(count, command, Path(folder)).run(when_ready)
