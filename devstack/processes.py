"""Start, recognise and end the stack's processes.

A process is known by pid and start time together, so a pid that now belongs to someone else is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import psutil

LOG_ROTATE_BYTES = 32 * 1024 * 1024
PRIVATE_UMASK = 0o077
"""Of every process of the stack: what it writes is its own, whatever the umask here."""

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
START_TIME_TOLERANCE_SECONDS = 2.0
"""The kernel's boot time, which start times are counted from, moves a little when the clock is set."""

KILL_TIMEOUT_SECONDS = 10.0
PORT_TIMEOUT_SECONDS = 5.0
PORTS = range(18_000, 32_000)

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes this interpreter started: they must be reaped here, or they stay as zombies."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """Enough to find a process again from another interpreter."""

    pid: int
    started_at: float
    """Seconds since the epoch."""

    @property
    def uptime_seconds(self) -> float:
        return max(0.0, time.time() - self.started_at)


Note = Callable[[ProcessRecord], object]
"""Writes a started process down."""


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    user: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> ProcessRecord:
    """Start a process in a session of its own, so that Ctrl-C here does not reach it. Output is appended to `log`."""
    make_private(log.parent)
    if log.exists() and log.stat().st_size > LOG_ROTATE_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with open_process_log(log) as output:
        child = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=dict(environ) if environ is not None else None,
            start_new_session=True,
            umask=PRIVATE_UMASK,
            user=user,
            group=_primary_group(user) if user else None,
            extra_groups=[] if user else None,
        )
    _children[child.pid] = child
    return ProcessRecord(child.pid, psutil.Process(child.pid).create_time())


def environ_without(*prefixes: str) -> dict[str, str]:
    """Return the environment for a server: without Plant's settings, which hold secrets, and what begins like these.

    A server may run as another user, who can read it.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("PLANT_", *prefixes))}


def make_private(folder: Path) -> None:
    """Make a folder that nobody else may write to, whatever the umask; one that is there loses that permission."""
    folder.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & WRITABLE_BY_OTHERS:
        folder.chmod(mode & ~WRITABLE_BY_OTHERS)


def open_process_log(log: Path) -> BinaryIO:
    """Open a log to append to; a new one can be read by its owner alone."""
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def _primary_group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def is_running(record: ProcessRecord | None) -> bool:
    """Tell whether the recorded process is alive; a zombie or a recycled pid is not."""
    return record is not None and _live(record) is not None


def _live(record: ProcessRecord) -> psutil.Process | None:
    if (child := _children.get(record.pid)) is not None and child.poll() is not None:
        del _children[record.pid]
    try:
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.started_at) > START_TIME_TOLERANCE_SECONDS:
            return None
        # A child of ours that has ended but can't be reaped still has threads, and with them sockets.
        ended = process.status() == psutil.STATUS_ZOMBIE and record.pid not in _children
        return None if ended else process
    except psutil.NoSuchProcess:
        return None


def send(record: ProcessRecord | None, number: signal.Signals) -> None:
    """Signal the recorded process if it is still that process."""
    if record is not None and (process := _live(record)) is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def freeze(record: ProcessRecord | None) -> None:
    """Send SIGSTOP, and wait until every thread has stopped."""
    send(record, signal.SIGSTOP)
    for _ in ticks(KILL_TIMEOUT_SECONDS):
        process = None if record is None else _live(record)
        if process is None or process.status() == psutil.STATUS_STOPPED:
            return


def kill(record: ProcessRecord | None) -> None:
    """Send SIGKILL, and wait until it is gone."""
    send(record, signal.SIGKILL)
    wait_gone(record, timeout_seconds=KILL_TIMEOUT_SECONDS)


def wait_gone(record: ProcessRecord | None, *, timeout_seconds: float) -> bool:
    """Tell whether the process ended in time."""
    for _ in ticks(timeout_seconds):
        if not is_running(record):
            return True
    return not is_running(record)


def ticks(timeout_seconds: float, every_seconds: float = 0.05) -> Iterator[float]:
    """Yield the seconds left, at once and then at intervals, until they have run out."""
    deadline = time.monotonic() + timeout_seconds
    while (left := deadline - time.monotonic()) > 0:
        yield left
        time.sleep(min(every_seconds, left))


def wait_ready(ready: Callable[[], bool], record: ProcessRecord, *, timeout_seconds: float) -> bool:
    """Tell whether `ready` came true before the deadline and before the process ended."""
    for _ in ticks(timeout_seconds):
        if ready():
            return True
        if not is_running(record):
            return False
    return False


def working_in(folder: Path, program: str) -> list[psutil.Process]:
    """Return the processes named `program` whose working directory is `folder`: what a killed parent has left."""
    wanted = os.path.realpath(folder)
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.name() == program and process.cwd() == wanted:
                processes.append(process)
    return processes


def clear(folder: Path, program: str, *, timeout_seconds: float) -> None:
    """Let processes that work in a stack's own folder end by themselves, then kill what is left (a frozen one, say).

    The folder is the stack's alone, so they can be nothing but its own.
    """
    _, left = psutil.wait_procs(working_in(folder, program), timeout=timeout_seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=KILL_TIMEOUT_SECONDS)


def choose_port(wanted: int | None, taken: set[int]) -> int:
    """Return `wanted` if it is free on the loopback interface, or soon is, else a random free port not in `taken`.

    Soon: a killed process counts as ended before its last thread has ended and closed the socket.

    Chosen below the range that systems hand to outgoing connections: otherwise a client that keeps trying to reach a
    stopped server is sooner or later given the server's own port, connects to itself, and the server can't come back.
    """
    if wanted and wanted not in taken and any(_is_free(wanted) for _ in ticks(PORT_TIMEOUT_SECONDS)):
        return wanted
    for _ in range(len(PORTS)):
        port = PORTS[secrets.randbelow(len(PORTS))]
        if port not in taken and _is_free(port):
            return port
    raise OSError("no free port on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Kafka and Postgres set it too: connections of the last run in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
