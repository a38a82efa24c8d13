"""Every command among closed streams, an unreadable home, a strange locale, no umask, a full disk for its output.

Nothing listens where the settings point: each command ends by itself, and says why.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, surroundings

GOOD = {0, 2, 3, 4}
"""1 is for our own faults."""
NOWHERE = "postgresql://u:top-secret-password@127.0.0.1:1/plant\n"


def run_all(folder: Path, redirect: str, pass_fds: tuple[int, ...] = (), **environ: str) -> tuple[Any, str]:
    """Run every command in one process, whose streams are redirected by bash; return exit codes and stderr."""
    result = folder / "result.json"
    unprivileged = os.geteuid() == 0 and "HOME" in environ
    asked = {"commands": surroundings.commands(), "result": str(result), "unprivileged": unprivileged}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PLANT_", "LC_", "LANG"))}
    settings = {
        "PLANT_HOME": str(folder / "none"),
        "PLANT_KAFKA_BOOTSTRAP_SERVERS": " 127.0.0.1:1\n",
        "PLANT_DATABASE_URL": NOWHERE,
        "PLANT_MASTER_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n",
        "PYTHONPATH": str(ROOT),
    }
    program = [sys.executable, "-m", surroundings.__name__, json.dumps(asked)]
    done = subprocess.run(
        ["bash", "-c", f'umask 000; exec "$@" {redirect}', "-", *program],
        env={**clean, **settings, **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        pass_fds=pass_fds,
    )
    assert result.exists(), done.stderr
    return json.loads(result.read_text("utf-8")), done.stderr


def assert_good(codes: dict[str, int], errors: str) -> None:
    assert len(codes) > 25
    assert {command: code for command, code in codes.items() if code not in GOOD} == {}, errors
    assert "Something unexpected" not in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert "top-secret-password" not in errors
    assert [line for line in errors.splitlines() if line.startswith("Unable connect")] == [], "aiokafka's own words"


def test_every_command_with_all_streams_closed(tmp_path: Path) -> None:
    """Each does what it can, and its exit code says how it went; settings end in newlines."""
    codes, errors = run_all(tmp_path, "<&- >&- 2>&-")

    assert_good(codes, errors)
    assert codes["settings"] == 0
    assert codes["keys list"] == 4, "the database is not reachable, which was found out"


def test_every_command_whose_readers_are_gone(tmp_path: Path) -> None:
    """A closed pipe takes neither the data nor the message of a check that says no, and turns no exit code into 0."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        codes, errors = run_all(tmp_path, f">&{writing} 2>&{writing}", (writing,))
    finally:
        os.close(writing)

    assert_good(codes, errors)
    assert codes["settings"] == 0
    assert codes["status"] == 4
    assert codes["doctor"] == 3
    assert codes["audit verify"] == 4
    assert codes["publish"] == 2, "an argument is missing"


def test_every_command_with_an_unreadable_home_a_latin_locale_and_a_full_disk(tmp_path: Path) -> None:
    """No library looks into HOME, no character ends a command, and a full disk is named; stderr alone is open."""
    home = tmp_path / "somebody's"
    home.mkdir()
    if os.geteuid() == 0:
        shutil.chown(home, 65534, 65534)
    home.chmod(0)
    strange = {"HOME": str(home), "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    codes, errors = run_all(tmp_path, "<&- > /dev/full", **strange)

    assert_good(codes, errors)
    assert codes["settings"] == 4
    assert "The output can't be written." in errors
    written = [path for path in tmp_path.rglob("*") if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]
    assert written == [], "the umask was 000"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("mark", b"\xef\xbb\xbf{}\n", 3), ("pipe", b"{}\n", 3), ("closed", b"", 2)],
)
def test_publish_reads_whatever_can_be_read(name: str, content: bytes, code: int, tmp_path: Path) -> None:
    """A pipe and a file with a byte order mark are read as any other; a closed stdin is named."""
    from operations.cli.main import CLOSED_STREAMS, run

    file = tmp_path / name
    match name:
        case "mark":
            file.write_bytes(content)
        case "pipe":
            reading, writing = os.pipe()
            os.write(writing, content)
            os.close(writing)
            file = Path(f"/dev/fd/{reading}")
        case _:
            CLOSED_STREAMS.add("stdin")
            file = Path("-")
    try:
        assert run(["publish", str(file)]) == code
    finally:
        CLOSED_STREAMS.discard("stdin")
