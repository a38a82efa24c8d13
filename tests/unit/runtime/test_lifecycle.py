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

def hang(seconds):
    threading.Thread(target=time.sleep, args=(seconds,), name="waits-for-ever").start()

async def serve_and_hang():
    await serve()
    await asyncio.to_thread(time.sleep, 3600)

async def serve_and_leave_a_thread(seconds=3600.0):
    await serve()
    hang(seconds)

match sys.argv[2]:
    case "ends":
        run_service(serve(), float(sys.argv[1]))
    case "hangs":
        run_service(serve_and_hang(), float(sys.argv[1]))
    case "leaves a thread":
        run_service(serve_and_leave_a_thread(), float(sys.argv[1]))
    case "ends among others":
        hang(2)
        run_service(serve_and_leave_a_thread(0.2), float(sys.argv[1]))
"""


def ended(seconds: float, what: str, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """Return the exit code and the output of a service that was told to end once it served."""
    command = [sys.executable, "-c", SERVE, str(seconds), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, output


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("what", ["hangs", "leaves a thread"])
def test_a_service_exits_in_time_whatever_hangs(what: str, number: signal.Signals) -> None:
    """A call to a server that is frozen, say, before it has ended and after that: with a line that names threads."""
    exit_code, output = ended(0.5, what, number)
    assert exit_code == EXIT_NOT_ENDED
    assert "service.not_ended" in output
    assert ("waits-for-ever" if what == "leaves a thread" else "MainThread") in output


@pytest.mark.parametrize("what", ["ends", "ends among others"])
def test_a_service_of_which_nothing_hangs_ends_by_itself(what: str) -> None:
    """The bound does nothing, whatever else goes on in the process."""
    assert ended(1, what) == (0, "")
