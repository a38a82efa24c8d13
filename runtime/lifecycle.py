"""The parts of a process that every service shares: metrics, signals, memory, file limits, whole files."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final
from wsgiref.simple_server import WSGIServer

from runtime.errors import ConfigurationError
from runtime.probes import Probes, make_probe_server

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_M_ARENA_MAX: Final = -8
"""Of glibc's `malloc.h`."""


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in the running event loop at each SIGINT and SIGTERM, as long as the block lasts."""
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


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
