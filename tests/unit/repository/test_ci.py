"""What CI's scripts make of the answers of the programs that they run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

TOOLS = ("bash", "sh", "dirname", "timeout", "sleep", "mktemp", "rm", "tee", "grep", "cat")


def script_in(folder: Path, name: str, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run a script of `.ci` in a folder of its own, where nothing but these programs can be found."""
    programs_folder = folder / "bin"
    for path in (programs_folder, folder / ".ci", folder / ".venv" / "bin"):
        path.mkdir(parents=True, exist_ok=True)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (programs_folder / tool).symlink_to(found)
    for program, body in programs.items():
        place = programs_folder if program in ("make", "go", "id", "uname") else folder / ".venv" / "bin"
        _write(folder / ".ci" / program if program == "containers" else place / program, f"#!/bin/sh\n{body}\n")
    shutil.copy(ROOT / ".ci" / name, folder / ".ci" / name)
    environ = {"PATH": str(programs_folder), "MINUTES": os.environ.get("MINUTES", "1")}
    return subprocess.run([folder / ".ci" / name], env=environ, capture_output=True, text=True, check=False)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(("containers", "expected"), [("exit 0", 0), ("exit 1", 1)])
def test_ci_runs_the_containers_tests(tmp_path: Path, containers: str, expected: int) -> None:
    """Their failure is CI's, and what they say is among its last lines."""
    says = f"echo '==> containers: skipped, since there is no Go.'; {containers}"
    done = script_in(tmp_path, "run", make="echo '== 3 passed in 0.1s =='", plant="", containers=says)
    assert done.returncode == expected
    last = ["== 3 passed in 0.1s ==", "== 3 passed in 0.1s ==", "==> containers: skipped, since there is no Go."]
    assert done.stdout.splitlines()[-3:] == last


@pytest.mark.parametrize(
    ("python", "status", "sentence"),
    [
        ("exit 0", 0, None),
        ('[ "$2" = pytest ] && exit 1; exit 0', 1, None),
        ('[ "$2" = pytest ] && exit 2; exit 0', 1, None),
        ('[ "$2" = pytest ] && exit 75; exit 0', 0, "this machine can't run containers: the reason is above"),
        ('[ "$2" = pytest ] && exit 137; exit 0', 1, None),
        ('[ "$2" = pytest ] || exit 75; exit 1', 0, "podman and its tools can't be installed by apt"),
        ('[ "$2" = pytest ] || exit 1; exit 0', 1, None),
    ],
    ids=["passed", "failed", "interrupted", "unable", "killed before its time", "no apt", "an error of ours"],
)
def test_only_what_the_machine_lacks_is_skipped(tmp_path: Path, python: str, status: int, sentence: str | None) -> None:
    """A test that fails is a failure, and a skip says why."""
    done = script_in(tmp_path, "containers", make="", go="", id="echo 0", uname="echo Linux", python=python)
    assert done.returncode == status, done.stderr
    assert done.stdout == (f"==> containers: skipped, since {sentence}.\n" if sentence else "")


@pytest.mark.parametrize(
    ("id", "uname", "sentence"),
    [
        ("echo 1000", "echo Linux", "podman is run as root here"),
        ("echo 0", "echo Darwin", "podman is run on Linux here"),
        ("echo 0", "echo Linux", "there is no Go to build Docker Compose"),
    ],
)
def test_a_machine_without_root_linux_or_go_is_skipped(tmp_path: Path, id: str, uname: str, sentence: str) -> None:
    """Before anything is installed."""
    done = script_in(tmp_path, "containers", make="exit 1", id=id, uname=uname, python="exit 1")
    assert (done.returncode, done.stdout) == (0, f"==> containers: skipped, since {sentence}.\n")


def test_a_slow_machine_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are ended when their time is over."""
    monkeypatch.setenv("MINUTES", "0")
    slow = '[ "$2" = pytest ] || exit 0; exec sleep 3600'
    done = script_in(tmp_path, "containers", make="", go="", id="echo 0", uname="echo Linux", python=slow)
    assert done.returncode == 0
    assert done.stdout == "==> containers: skipped, since the tests did not end within 0 minutes.\n"
