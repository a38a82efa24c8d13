"""The types of records are ready for use by several threads."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from schemas.examples import examples
from tests.support import ROOT

THREADS = """
import json, sys, threading
import msgspec
from schemas.record_types import RECORD_TYPES

sys.setswitchinterval(1e-6)
for name, fields in json.loads(sys.stdin.read()).items():
    together = threading.Barrier(8)

    def read(kind=RECORD_TYPES[name], fields=fields, together=together):
        together.wait()
        msgspec.convert(fields, kind)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
print("read")
"""
TIMES = 4
"""One of them finds the fault in four runs of five."""


def test_threads_may_read_a_type_for_the_first_time_at_once() -> None:
    """As a dispatcher's do that starts: msgspec, left to itself, ends the process where one finds a type half made."""
    fields = msgspec.json.encode({name: msgspec.to_builtins(each) for name, each in examples().items()})
    for _ in range(TIMES):
        child = subprocess.run(
            [sys.executable, "-c", THREADS], input=fields, capture_output=True, cwd=ROOT, check=False
        )
        assert (child.returncode, child.stdout, child.stderr) == (0, b"read\n", b"")
