"""The check that no log of the suite holds a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, secret_logs
from tests.support.secret_logs import look_into, remember_environ, secrets_in_text

SECRET = "only-for-this-check-0123456789"


def test_files_and_texts_that_hold_a_secret_are_found(tmp_path: Path) -> None:
    """Whole values and passwords of addresses, percent-encoded too; Kafka's segments are left out."""
    remember_environ({"PLANT_DATABASE_API_URL": f"postgresql://u:{SECRET}%2F@h/d"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.log").write_text(SECRET)
    (tmp_path / "worker.log").write_text(f"password {SECRET}/ refused")
    (tmp_path / "kafka.log").write_text("nothing")

    assert [finding.partition(" holds ")[0] for finding in look_into(tmp_path)] == [str(tmp_path / "worker.log")]
    assert secrets_in_text(f"{SECRET}%2F")
    assert SECRET not in str(look_into(tmp_path))
    (tmp_path / "worker.log").unlink()  # The session's own check would find it.


@pytest.mark.parametrize("where", ["stderr", "process", "file"])
def test_a_session_that_logged_a_secret_fails(where: str, tmp_path: Path) -> None:
    """Printed by a test, by a process that it started, or into a file in its folder."""
    print_it = f"import sys; sys.stderr.write('{SECRET}')"
    run_it = f"subprocess.run([sys.executable, '-c', {print_it!r}], capture_output=True)"
    body = {
        "stderr": print_it,
        "process": f"import subprocess, sys; {run_it}",
        "file": f"(tmp_path / 'x.log').write_text('{SECRET}')",
    }[where]
    (tmp_path / "test_it.py").write_text(f"def test_it(tmp_path):\n    {body}\n")
    argv = ["-m", "pytest", "-q", "-p", secret_logs.__name__, "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    compiled = {name: value for name, value in os.environ.items() if name == "PYTHONPYCACHEPREFIX"}
    without_plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environ = {
        "PYTHONPATH": str(ROOT),
        "PLANT_MASTER_KEY": SECRET,
        "PATH": "/usr/bin:/bin",
        **compiled,
        **without_plugins,
    }
    command = [sys.executable, *argv, f"--basetemp={tmp_path / 'base'}", str(tmp_path / "test_it.py")]

    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "holds only…" in done.stdout
