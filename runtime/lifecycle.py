"""The parts of a process that every service shares: metrics, signals, memory, file limits, whole files."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar
from wsgiref.simple_server import WSGIServer

import uvloop

from runtime.errors import ConfigurationError
from runtime.logging import get_logger
from runtime.probes import Probes, make_probe_server

log = get_logger(__name__)

Result = TypeVar("Result")

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

END_SECONDS: Final = 50.0
"""How long a service may take from the first signal on: 10 s less than `docker-compose.kafka.yml` waits."""
EXIT_NOT_ENDED: Final = 1

_M_ARENA_MAX: Final = -8
"""Of glibc's `malloc.h`."""


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in the running event loop at each SIGINT and SIGTERM, as long as the block lasts."""
    loop = asyncio.get_running_loop()

    def begin_end() -> None:
        if (end := _end.get()) is not None:
            end.begin()
        stop()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, begin_end)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


class BoundedEnd:
    """The end of a service: at once when its work is done, and in time where a call never returns.

    A thread that waits for a server which is frozen can't be interrupted, and Python waits for every thread.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before = set(threading.enumerate())
        self._left: Sequence[threading.Thread] | None = None
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Let this process exit with EXIT_NOT_ENDED in so many seconds, unless the service has ended by then."""
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self._exit)
            self._timer.daemon = True
            self._timer.start()

    def note_return(self) -> None:
        """Note that the service has returned: what of its threads is still there may hold up the process."""
        self._left = [each for each in threading.enumerate() if each not in self._before and not each.daemon]
        if self._timer is not None and not self._left:
            self._timer.cancel()

    def _exit(self) -> None:
        threads = threading.enumerate() if self._left is None else self._left
        waiting = sorted(each.name for each in threads if each.is_alive() and not each.daemon)
        if waiting:
            log.error("service.not_ended", seconds=self._seconds, threads=waiting)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_NOT_ENDED)


_end: ContextVar[BoundedEnd | None] = ContextVar("end", default=None)


def run_service(service: Coroutine[Any, Any, Result], end_seconds: float = END_SECONDS) -> Result:
    """Run a service in this process, which exits so long after the first signal that tells it to stop, if not before.

    The signals are those of :func:`stop_on_signals`.
    """
    end = BoundedEnd(end_seconds)
    token = _end.set(end)
    try:
        return uvloop.run(service)
    finally:
        _end.reset(token)
        end.note_return()


async def keep_refreshing(
    refresh: Callable[[], Awaitable[None]], every_seconds: float, note_failure: Callable[[Exception], None]
) -> None:
    """Refresh again and again, until the task is cancelled; of failures in a row the first one is noted."""
    failing = False
    while True:
        try:
            await refresh()
            failing = False
        except Exception as error:  # the database is away or not migrated: try again, with what there is
            if not failing:
                note_failure(error)
            failing = True
        await asyncio.sleep(every_seconds)


def tune_gc(threshold_objects: int, *later_thresholds: int) -> None:
    """Collect garbage once, exempt what is left from collection, and collect at these thresholds from now on.

    The thresholds are those of `gc.set_threshold`: new objects until the youngest generation is collected, then the
    collections of each generation until that of the next.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(threshold_objects, *later_thresholds)


def bound_malloc_arenas(arenas_max: int) -> bool:
    """Let threads share so many arenas of glibc's allocator; call this before they are started.

    Each has its own otherwise, up to eight a processor, and what is free in one is of no use to the others. Returns
    whether the allocator took it: of another C library's nothing is asked.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, arenas_max))
    except AttributeError:
        return False


def raise_fd_limit(wanted_files: int) -> int | None:
    """Let this process open as many files as wanted, if its hard limit allows so many.

    Returns how many it may open, None where there is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted_files:
        soft = wanted_files if hard == resource.RLIM_INFINITY else min(hard, wanted_files)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return None if soft == resource.RLIM_INFINITY else soft


def temp_path(path: Path) -> Path:
    """Return this process's temporary name for a file, in the same folder: write it, then rename it to `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}")


def serve_metrics(address: str, service: str = "worker", probes: Probes | None = None) -> WSGIServer | None:
    """Serve Prometheus metrics, and the probes, at `host:port`, in a thread; nowhere if empty.

    Raises ConfigurationError.
    """
    if not address:
        return None
    host, _, port = address.rpartition(":")
    try:
        server = make_probe_server(host or "127.0.0.1", int(port), probes)
    except (ValueError, OSError, OverflowError) as error:
        raise ConfigurationError(
            f"The {service}'s metrics can't be served.",
            why=f"PLANT_{service.upper()}_METRICS_ADDRESS is {address}: {error}.",
            next_step="plant settings",
        ) from error
    threading.Thread(target=server.serve_forever, name=f"{service}-metrics", daemon=True).start()
    return server
