"""The long form of tests, and who runs it."""

from __future__ import annotations

import pytest

from tests.support import ROOT
from tests.support.long_form import ASKED, sized


@pytest.mark.parametrize(("asked", "form"), [("", "short"), ("1", "long")])
def test_a_run_has_one_form(monkeypatch: pytest.MonkeyPatch, asked: str, form: str) -> None:
    """The short one unless the other is asked for."""
    monkeypatch.setenv(ASKED, asked)

    assert sized("short", "long") == form


def test_make_faults_runs_all_that_have_a_long_form() -> None:
    """Those of fault tests, and of integration tests, which it finds by what they import."""
    with_a_long_form = [
        path.relative_to(ROOT / "tests").parts[0]
        for path in (ROOT / "tests").rglob("test_*.py")
        if "long_form import" in path.read_text("utf-8") and path.name != "test_long_form.py"
    ]
    (recipe,) = [line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if f"{ASKED}=1" in line]

    assert set(with_a_long_form) == {"faults", "integration"}
    assert "pytest tests/faults $$(grep -rl 'long_form import' tests/integration)" in recipe
