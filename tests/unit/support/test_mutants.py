"""The score of mutants says no where mutants survived, did not run, or could not be judged."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import mutant_files, mutants
from tests.support.mutant_judge import CAUGHT, START_AGAIN, SURVIVED
from tests.support.mutants import ALL_DIGITS, SUSPICIOUS, TIMEOUT, judge, main

NAMES = [f"ingress.rates.x_pay__mutmut_{number}" for number in range(3)]


@contextmanager
def none_needed() -> Iterator[None]:
    yield


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of one module's results, in a folder of this test."""
    monkeypatch.setattr(mutant_files, "FOLDER", tmp_path)
    monkeypatch.setattr(mutant_files, "make", lambda: None)
    monkeypatch.setattr(mutants, "shared_services", none_needed)
    (tmp_path / "ingress").mkdir()
    return tmp_path / "ingress" / "rates.py.meta"


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [
        ([1] * 10, 0),
        ([1] * 9 + [0], 0),
        ([1] * 8 + [0, 33], 3),
        ([1] * 9 + [None], 3),
        ([None] * 10, 3),
        ([], 3),
        ([1] * 9 + [0] + [37, 38] * 10, 0),
        ([37] * 10, 3),
    ],
    ids=[
        "all caught",
        "at the floor",
        "under it",
        "one not run",
        "none run",
        "none made",
        "some refused",
        "all refused",
    ],
)
def test_a_score_needs_every_mutant(results: Path, codes: list[int | None], exit_code: int) -> None:
    """Nine of ten must be caught, and none may be left that has not run; those that mypy refuses do not count."""
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
    """Where a judge ends without a verdict, good results that lie there from before do not count."""
    codes = {"ingress.rates.x_1": 1, "ingress.rates.x_2": None}
    results.write_text(json.dumps({"exit_code_by_key": codes}))
    monkeypatch.setattr(mutants, "_run_judge", lambda *_: 4)
    assert main([]) == 1


def test_a_judge_that_ends_is_followed_by_another(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant at which it was ended is caught, and one that it asked to be judged again is judged by the next one."""
    results.write_text(json.dumps({"exit_code_by_key": dict.fromkeys(NAMES)}))
    runs = [
        (1, [{"begun": NAMES[0]}]),
        (START_AGAIN, [{"begun": NAMES[1]}, {"polluted": NAMES[1]}]),
        (
            0,
            [
                {"begun": NAMES[1]},
                {"mutant": NAMES[1], "code": SURVIVED},
                {"begun": NAMES[2]},
                {"mutant": NAMES[2], "code": CAUGHT},
            ],
        ),
    ]
    asked = []

    def run(package: str, todo: Path, reach: Path, verdicts: Path, _seconds: float) -> int:
        asked.append(todo.read_text().split())
        code, lines = runs[len(asked) - 1]
        with verdicts.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return code

    monkeypatch.setattr(mutants, "_run_judge", run)
    judge([], ALL_DIGITS, again=False, seconds=1)
    assert asked == [NAMES, NAMES[1:], NAMES[1:]]
    codes = json.loads(results.read_text())["exit_code_by_key"]
    assert codes == {NAMES[0]: TIMEOUT, NAMES[1]: SURVIVED, NAMES[2]: CAUGHT}


def test_a_mutant_that_always_leaves_something_behind_is_missed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no endless run, and nothing was shown to catch it."""
    results.write_text(json.dumps({"exit_code_by_key": dict.fromkeys(NAMES[:1])}))

    def run(package: str, todo: Path, reach: Path, verdicts: Path, _seconds: float) -> int:
        with verdicts.open("a") as file:
            file.write(f'{{"begun": "{NAMES[0]}"}}\n{{"polluted": "{NAMES[0]}"}}\n')
        return START_AGAIN

    monkeypatch.setattr(mutants, "_run_judge", run)
    assert main([]) == 3
    assert json.loads(results.read_text())["exit_code_by_key"] == {NAMES[0]: SUSPICIOUS}


@pytest.mark.parametrize(("again", "expected"), [(False, NAMES[2:]), (True, NAMES[1:])])
def test_only_those_without_a_verdict_are_judged(
    results: Path, monkeypatch: pytest.MonkeyPatch, again: bool, expected: list[str]
) -> None:
    """Or, where one asks for it, those that survived as well."""
    results.write_text(json.dumps({"exit_code_by_key": dict(zip(NAMES, [CAUGHT, SURVIVED, None], strict=True))}))
    asked: list[str] = []
    monkeypatch.setattr(mutants, "_judge_package", lambda package, names, seconds: asked.extend(names))
    judge(["ingress.rates"], ALL_DIGITS, again=again, seconds=1)
    assert asked == expected


def test_a_sample_is_judged_and_scored_alone(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others neither run nor count, whatever earlier runs found of them; modules go in the order that they have."""
    names = [f"x_pay__mutmut_{number}" for number in (1, 7, 10, 17, 70, 71, 107)]
    codes = dict.fromkeys((f"ingress.rates.{name}" for name in names), None)
    results.write_text(json.dumps({"exit_code_by_key": codes | {"ingress.rates.x_pay__mutmut_1": SURVIVED}}))
    bulk = {f"ingress.bulk.{name}": None for name in names}
    results.with_name("bulk.py.meta").write_text(json.dumps({"exit_code_by_key": bulk}))
    asked: list[str] = []

    def judge_package(_package: str, names: list[str], _seconds: float) -> None:
        asked.extend(names)
        mutant_files.note(dict.fromkeys(names, CAUGHT))

    monkeypatch.setattr(mutants, "_judge_package", judge_package)
    assert main(["--digits", "70", "ingress.rates", "ingress.bulk"]) == 0
    expected = [f"ingress.{module}.x_pay__mutmut_{n}" for module in ("rates", "bulk") for n in (7, 10, 17, 70, 107)]
    assert asked == expected
    assert "ingress.rates                              5       0        0        0  100.0%" in capsys.readouterr().out
    assert main(["--report-only", "--digits", "1", "ingress.rates"]) == 3
    with pytest.raises(SystemExit):
        main(["--digits", "x"])


def test_the_docstrings_are_right() -> None:
    """The examples of the module hold."""
    assert doctest.testmod(mutants).failed == 0
    assert doctest.testmod(mutant_files).failed == 0
