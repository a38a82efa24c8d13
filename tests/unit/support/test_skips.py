"""The rule that CI skips nothing in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.skips import read_allowed, unlisted


@pytest.mark.parametrize(("listed", "code"), [(True, 0), (False, 1)])
def test_unlisted_skip_fails_a_run_in_ci(tmp_path: Path, listed: bool, code: int) -> None:
    """A run with one skipped test passes only where that test is listed."""
    (tmp_path / "test_it.py").write_text("import pytest\n\n@pytest.mark.skip(reason='x')\ndef test_s(): ...\n")
    (tmp_path / "allowed_skips.toml").write_text(
        '[[skip]]\ntest = "test_it.py::test_s"\nreason = "because"\n' if listed else ""
    )
    (tmp_path / "skips.py").write_text((ROOT / "tests" / "support" / "skips.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "skips", "--rootdir", tmp_path, "-c", "/dev/null", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "CI": "true", "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code, done.stdout + done.stderr
    assert ("was skipped and is not in allowed_skips.toml" in done.stdout) is not listed


def test_parametrised_test_is_listed_once() -> None:
    """A name without brackets allows every parameter of that test."""
    assert unlisted(["a.py::t[1]", "a.py::t[2]", "a.py::u"], ["a.py::t"]) == ["a.py::u"]


def test_every_listed_test_exists_and_has_a_reason() -> None:
    """The list names real tests; a renamed test would otherwise stay allowed permanently."""
    for name, reason in read_allowed().items():
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name
        assert len(reason) > 20
