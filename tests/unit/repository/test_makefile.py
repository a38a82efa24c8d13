"""What `make` gives to the programs that it runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

from tests.support import ROOT


def test_programs_keep_what_they_compile() -> None:
    """Python writes compiled modules into the environment's folder, also for who has forbidden it next to sources."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    command = ["make", "--no-print-directory", "--eval", "environ: ; @env", "environ"]
    done = subprocess.run(
        command, cwd=ROOT, env={**environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True
    )
    assert f"PYTHONPYCACHEPREFIX={ROOT / '.venv' / 'pycache'}" in done.stdout.splitlines()
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


def test_ci_runs_every_folder_of_tests() -> None:
    """What `make test` leaves out is run by another command of CI's; containers have one of their own."""
    folders = {each.parent.name for each in (ROOT / "tests").glob("*/__init__.py")} - {"support", "containers"}
    asked = re.search(r"^for tests in (.+); do$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert asked is not None
    assert set().union(*(_folders_run_by(target, folders) for target in asked[1].split())) == folders
    assert _folders_run_by("test", folders) == folders - {"faults", "end_to_end"}


def _folders_run_by(target: str, folders: set[str]) -> set[str]:
    """Return the folders of tests that a command of make would run."""
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old", ".venv/.ready-all", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [each for each in done.stdout.splitlines() if " -m pytest " in each]
    words = shlex.split(line.removeprefix("@"))
    ignored = {words[at + 1] for at, word in enumerate(words) if word == "--ignore"}
    named = {word for at, word in enumerate(words) if word.startswith("tests/") and words[at - 1] != "--ignore"}
    return {each for each in folders if f"tests/{each}" in named or (not named and f"tests/{each}" not in ignored)}
