"""Commands print no log lines of libraries, unless they are to be debugged."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOGGED = "Unable connect to node"
PROGRAM = f"""
import logging, sys
from runtime.library_lines import leave_out_library_lines
from runtime.redaction import KNOWN

KNOWN.remember(["top-secret-password"])
leave_out_library_lines(debug=sys.argv[1] == "debug")
for name in ("aiokafka", "rdkafka", "asyncio", "sqlalchemy.pool"):
    logging.getLogger(name).info("nobody asked")
    logging.getLogger(name).warning("{LOGGED} with top-secret-password")
"""


@pytest.mark.parametrize(("mode", "lines"), [("usual", []), ("debug", [f"{LOGGED} with ********"] * 4)])
def test_lines_of_libraries_are_for_debugging(mode: str, lines: list[str]) -> None:
    """Whichever library logs: its warnings are left out, or come without secrets."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == lines
