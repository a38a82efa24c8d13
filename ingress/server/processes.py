"""Several ingress processes on one port: the kernel spreads connections over them, and one parent looks after all.

Each is a whole `plant ingress` with an event loop, a producer and a window of repeats of its own. Copies of a request
that reach two of them at once become two records, of which the partition's owner applies one. A process that dies is
replaced. When the parent ends, however it ends, so do they: they hold the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from ingress.errors import ProcessEnded
from ingress.server.http_server import address_of, bind_socket, clear_ready_file, write_ready_file

START_SECONDS: Final = 60.0
END_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05
RESTART_SECONDS: Final = 1.0

Command = Callable[[int, int, Path], tuple[list[str], Mapping[str, str]]]
"""Arguments and environment of a process, from its number, its end of the pipe and its ready file."""


class Processes:
    """The processes of one port. Make it, then :meth:`run`."""

    def __init__(self, count: int, command: Command, folder: Path) -> None:
        self._count = count
        self._command = command
        self._folder = folder
        self._pipe = os.pipe()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ending = False

    def run(self, when_ready: Callable[[], None]) -> None:
        """Start all, the first one first: what keeps it from starting is said once. Returns when they were ended.

        Raises ProcessEnded where one could not be started.
        """
        with self._signals():
            try:
                for number in range(self._count):
                    self._start(number)
                    self._wait_ready(number)
                if not self._ending:
                    when_ready()
                while not self._ending:
                    self._replace_dead()
                    time.sleep(POLL_SECONDS)
            finally:
                self._end()

    def _start(self, number: int) -> None:
        arguments, environ = self._command(number, self._pipe[0], self._ready_file(number))
        self._ready_file(number).unlink(missing_ok=True)
        self._running[number] = subprocess.Popen(
            arguments, env={**os.environ, **environ}, pass_fds=(self._pipe[0],), start_new_session=True
        )

    def _wait_ready(self, number: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._ending and not self._ready_file(number).exists():
            code = self._running[number].poll()
            if code is not None:
                raise ProcessEnded(why=f"It ended with exit code {code}.", next_step="plant ingress --processes 1")
            if time.monotonic() > deadline:
                return  # Kafka or Postgres is away: it waits for them, and so do we no longer
            time.sleep(POLL_SECONDS)

    def _replace_dead(self) -> None:
        for number, process in list(self._running.items()):
            if process.poll() is not None and not self._ending:
                time.sleep(RESTART_SECONDS)
                self._start(number)

    def _end(self) -> None:
        self._ending = True
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + END_SECONDS
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


def run_several(
    count: int,
    *,
    host: str,
    port: int,
    metrics_address: str,
    ready_file: Path | None,
    say: Callable[[str], None],
) -> None:
    """Serve with so many processes until SIGTERM or SIGINT; then they answer what they accepted.

    `metrics_address` is the first one's; the others take the ports after it. Raises AddressInUse, ReadyFileUnwritable,
    ProcessEnded.
    """
    if ready_file is not None:
        clear_ready_file(ready_file)
    # Bound and never listened on: it keeps the port for the others, whatever happens to them.
    with contextlib.closing(bind_socket(host, port, shared=True)) as place, tempfile.TemporaryDirectory() as folder:
        address = address_of(place)

        def command(number: int, pipe: int, ready: Path) -> tuple[list[str], Mapping[str, str]]:
            program = [sys.executable, "-m", "operations", "ingress", "--host", host]
            given = ["--port", str(address.port), "--ready-file", str(ready), "--processes", "1"]
            environ = {"PLANT_INGRESS_METRICS_ADDRESS": _metrics_address(metrics_address, number)}
            return [*program, *given, "--parent-pipe", str(pipe)], environ

        def when_ready() -> None:
            say(f"Listening on {address.url} with {count} processes")
            if ready_file is not None:
                write_ready_file(ready_file, address)

        Processes(count, command, Path(folder)).run(when_ready)


def _metrics_address(first: str, number: int) -> str:
    if not first:
        return ""
    host, _, port = first.rpartition(":")
    return f"{host}:{int(port) + number}" if port.isdecimal() else first
