"""What processes set for themselves as they start, in processes of their own."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys

import pytest

from runtime.lifecycle import EXIT_NOT_ENDED, STOP_SIGNALS
from tests.support.waiting import DEADLINE_SECONDS

ARENAS_OF_THREADS = """
import ctypes, sys, threading
from runtime.lifecycle import bound_malloc_arenas

if sys.argv[1:]:
    assert bound_malloc_arenas(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
begun = threading.Barrier(13)

def take():
    libc.malloc(1000)
    begun.wait()

threads = [threading.Thread(target=take) for _ in range(12)]
for thread in threads:
    thread.start()
begun.wait()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def arenas(*bound: str) -> int:
    """Return in how many arenas twelve threads have memory that live at once."""
    command = [sys.executable, "-c", ARENAS_OF_THREADS, *bound]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.count("<heap ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
def test_threads_share_arenas_of_memory() -> None:
    """As many as there may be; without a bound they have more, or this would show nothing."""
    assert arenas() > 2
    assert arenas("2") == 2


SERVE = """
import asyncio, sys, threading, time
from runtime.lifecycle import run_service, stop_on_signals

async def serve():
    stop = asyncio.Event()
    with stop_on_signals(stop.set):
        print("serving", flush=True)
        await stop.wait()

if sys.argv[2:]:
    threading.Thread(target=time.sleep, args=(3600,), name="waits-for-ever").start()
run_service(serve(), float(sys.argv[1]))
"""


def serving(*arguments: str) -> subprocess.Popen[str]:
    """Return a service that serves; with a second argument one of its threads never ends."""
    made = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "serving\n"
    return made


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_service_exits_in_time_whatever_hangs(number: signal.Signals) -> None:
    """A call to a server that is frozen, say: with a line that names the threads."""
    with serving("0.5", "hangs") as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == EXIT_NOT_ENDED
    assert "service.not_ended" in output
    assert "waits-for-ever" in output


def test_a_service_without_a_call_that_hangs_ends_by_itself() -> None:
    """The bound costs it nothing."""
    with serving("3600") as process:
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, output) == (0, "")
