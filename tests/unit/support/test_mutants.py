"""The score of mutants says no where mutants survived, did not run, or could not be made."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import mutants
from tests.support.mutants import main


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of one module's results, in a folder of this test."""
    monkeypatch.setattr(mutants, "FOLDER", tmp_path)
    (tmp_path / "ingress").mkdir()
    return tmp_path / "ingress" / "rates.py.meta"


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [([1] * 10, 0), ([1] * 9 + [0], 0), ([1] * 8 + [0, 33], 3), ([1] * 9 + [None], 3), ([None] * 10, 3), ([], 3)],
    ids=["all caught", "at the floor", "under it", "one not run", "none run", "none made"],
)
def test_a_score_needs_every_mutant(results: Path, codes: list[int | None], exit_code: int) -> None:
    """Nine of ten must be caught, and none may be left that has not run."""
    named = {f"ingress.rates.x_{number}": code for number, code in enumerate(codes)}
    results.write_text(json.dumps({"exit_code_by_key": named}))
    assert main(["--report-only"]) == exit_code


def test_each_module_that_is_named_needs_mutants(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module without any, misspelt or gone, is not good because another one is."""
    results.write_text(json.dumps({"exit_code_by_key": {"ingress.rates.x_1": 1}}))
    assert main(["--report-only", "ingress.rates"]) == 0
    assert main(["--report-only", "ingress.rates", "ingress.rate"]) == 3
    assert "ingress.rate has no mutant" in capsys.readouterr().err


def test_results_of_an_earlier_run_are_no_score(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where mutmut fails, good results that lie there from before do not count."""

    @contextmanager
    def none_needed() -> Iterator[None]:
        yield

    monkeypatch.setattr(mutants, "shared_services", none_needed)
    monkeypatch.setattr(mutants, "MUTMUT", "false")
    results.write_text(json.dumps({"exit_code_by_key": {"ingress.rates.x_1": 1}}))
    assert main([]) == 1


def test_the_docstrings_are_right() -> None:
    """The examples of the module hold."""
    assert doctest.testmod(mutants).failed == 0
