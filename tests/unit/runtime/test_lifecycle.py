"""What processes set for themselves as they start, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
