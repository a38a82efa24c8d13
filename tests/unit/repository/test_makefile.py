"""What `make` gives to the programs that it runs."""

from __future__ import annotations

import os
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
