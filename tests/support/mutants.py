"""`python -m tests.support.mutants [MODULE ...]`: small faults put into the code, and how many of them tests catch.

mutmut makes the faults (its settings are in pyproject.toml), `mutant_judge.py` runs, for each, the tests that reach the
changed function, until one fails. All runs share one Kafka and one Postgres. `mutmut show NAME` prints a fault that no
test caught. A run continues where an interrupted one stopped; `make clean EXECUTE=1` removes its results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import ROOT, mutant_files
from tests.support.mutant_judge import CAUGHT, NO_TEST, START_AGAIN, SURVIVED
from tests.support.services import shared_services

SUSPICIOUS: Final = 35
TIMEOUT: Final = 36
OUTCOMES: Final = {SURVIVED: "survived", CAUGHT: "caught", NO_TEST: "no test", TIMEOUT: "caught"}
"""The code of a mutant to its outcome; a test that no longer ends has caught the fault."""

ALL_DIGITS: Final = "0123456789"

AGAIN_MAX: Final = 3
"""A mutant after which its test fails without it, this many times, is judged no further: it counts as missed."""

INTEGRATION: Final[Mapping[str, Sequence[str]]] = {
    "audit": ["audit/test_chains.py", "audit/test_engine.py", "audit/test_ranges.py", "audit/test_tampering.py"],
    "entities": ["entities/test_audit_trail.py", "entities/test_store.py"],
    "ingress": ["ingress/test_routes.py"],
    "projections": [
        f"projections/{name}.py"
        for name in (
            "test_agents",
            "test_builds",
            "test_engine",
            "test_lagging_models",
            "test_lagging_slices",
            "test_log_ranges",
            "test_partition_parking",
            "test_poison_rows",
            "test_stopped_models",
            "test_stored_builds",
            "rebuild/test_fill",
            "rebuild/test_topic_source",
        )
    ],
    "relay": ["relay/test_dead_letters.py", "projections/test_poison_rows.py"],
    "streams": ["streams/test_producer.py", "streams/test_worker.py"],
}
"""The tests that judge the mutants of a package next to its unit tests: those that run its code in this process."""


class Score(NamedTuple):
    """The mutants of one module."""

    module: str
    caught: int
    missed: int
    left_out: int
    not_run: int

    @property
    def percent(self) -> float:
        return 100 * self.caught / max(1, self.caught + self.missed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the mutants, print a score a module and the mutants that survived.

    The exit code is 3 under the wanted score, and 1 where the mutants could not be judged: results of an earlier run
    are no score of this one.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as audit.verifier.chain_range; default: all of the settings")
    parser.add_argument(
        "--digits",
        type=_digits,
        default=ALL_DIGITS,
        help="judge the mutants whose number ends in one of these, such as 7 for a tenth of them; default: all",
    )
    parser.add_argument("--floor", type=float, default=90.0, help="percent that must be caught")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="what the tests of a mutant may take; those beyond it are left out, which can only lower a score",
    )
    parser.add_argument("--again", action="store_true", help="judge those that survived once more, with today's tests")
    parser.add_argument("--report-only", action="store_true", help="judge nothing; print what earlier runs found")
    options = parser.parse_args(arguments)
    if not options.report_only:
        try:
            judge(options.modules, options.digits, again=options.again, seconds=options.seconds)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"the mutants could not be judged: {error}", file=sys.stderr)
            return 1
    return report(options.modules, options.digits, options.floor)


def judge(modules: Sequence[str], digits: str, *, again: bool, seconds: float) -> None:
    """Make the mutants and judge those of these digits that have no verdict yet, package by package."""
    mutant_files.make()
    wanted: dict[str, list[str]] = {}
    for module, codes in _results(modules, digits):
        names = [name for name, code in codes.items() if code is None or (again and code in (SURVIVED, NO_TEST))]
        wanted.setdefault(module.partition(".")[0], []).extend(names)
    with shared_services():
        for package, names in wanted.items():
            if names:
                _judge_package(package, names, seconds)


def _judge_package(package: str, names: Sequence[str], seconds: float) -> None:
    """Run judges until each mutant has a verdict: a process ends with one that hangs, or that leaves something."""
    todo = mutant_files.FOLDER / f"{package}.todo"
    reach = mutant_files.FOLDER / f"{package}.map"
    verdicts = mutant_files.FOLDER / f"{package}.verdicts"
    verdicts.write_text("")
    done: dict[str, int] = {}
    while left := [name for name in names if name not in done]:
        todo.write_text("\n".join(left), encoding="utf-8")
        before = verdicts.stat().st_size
        code = _run_judge(package, todo, reach, verdicts, seconds)
        lines = [json.loads(line) for line in verdicts.read_text("utf-8").splitlines()]
        done |= {line["mutant"]: line["code"] for line in lines if "mutant" in line}
        left_behind = Counter(line["polluted"] for line in lines if "polluted" in line)
        done |= {name: SUSPICIOUS for name, times in left_behind.items() if times == AGAIN_MAX and name not in done}
        begun = lines[-1].get("begun") if lines else None
        if code != START_AGAIN and begun and begun not in done:
            done[begun] = TIMEOUT
        mutant_files.note(done)
        if verdicts.stat().st_size == before:
            raise RuntimeError(
                f"the judge of {package} ended with {code}; {mutant_files.FOLDER}/{package}.log says why"
            )


def _run_judge(package: str, todo: Path, reach: Path, verdicts: Path, seconds: float) -> int:
    """Run one process of pytest to its end, then end what its tests have started."""
    command = [
        *(sys.executable, "-P", "-m", "pytest", "-p", "tests.support.mutant_judge", "--import-mode=append"),
        *("-q", "--tb=native", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"),
        *("--mutants-file", str(todo), "--mutant-map", str(reach), "--verdicts", str(verdicts)),
        *("--judges-seconds", str(seconds)),
        *(f"tests/unit/{package}", *(f"tests/integration/{file}" for file in INTEGRATION.get(package, ()))),
    ]
    environ = {**os.environ, "PYTHONPATH": str(mutant_files.FOLDER)}
    with (mutant_files.FOLDER / f"{package}.log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def report(modules: Sequence[str], digits: str, floor: float) -> int:
    """Print the scores and the survivors; return the exit code."""
    scores = list(read_scores(modules, digits))
    print(f"{'module':<36} {'caught':>7} {'missed':>7} {'left out':>8} {'not run':>8} {'score':>7}")
    for score in (*scores, total := _total(scores)):
        counts = f"{score.caught:>7} {score.missed:>7} {score.left_out:>8} {score.not_run:>8}"
        print(f"{score.module:<36} {counts} {score.percent:>6.1f}%")
    for name in survivors(modules, digits):
        print(f"survived: {name}")
    without = set(modules) - {score.module for score in scores if score.caught + score.missed}
    for module in sorted(without):
        print(f"{module} has no mutant that was run: nothing was checked", file=sys.stderr)
    return 0 if not without and is_good(total, floor) else 3


def _total(scores: Sequence[Score]) -> Score:
    return Score("all", *(sum(score[column] for score in scores) for column in (1, 2, 3, 4)))  # type: ignore[misc]


def is_good(total: Score, floor: float) -> bool:
    """Return whether enough mutants were caught, and none is left that has not run.

    >>> is_good(Score("all", 9, 1, 0, 0), 90.0), is_good(Score("all", 9, 1, 0, 1), 90.0)
    (True, False)
    """
    return total.caught > 0 and total.percent >= floor and not total.not_run


def read_scores(modules: Sequence[str], digits: str) -> Iterator[Score]:
    """Yield the score of each module, of its mutants whose number ends in one of these digits."""
    for module, codes in _results(modules, digits):
        outcomes = Counter(map(outcome_of, codes.values()))
        missed = outcomes["survived"] + outcomes["no test"] + outcomes["suspicious"]
        yield Score(module, outcomes["caught"], missed, outcomes["left out"], outcomes["not run"])


def outcome_of(code: int | None) -> str:
    """Return the outcome of a mutant; a code that nobody knows is suspicious, which counts as missed."""
    if code is None:
        return "not run"
    return "left out" if code in mutant_files.NOT_JUDGED else OUTCOMES.get(code, "suspicious")


def survivors(modules: Sequence[str], digits: str) -> Iterator[str]:
    """Yield the mutants that no test caught, each with its outcome."""
    for _, codes in _results(modules, digits):
        for name, code in codes.items():
            if (outcome := outcome_of(code)) in ("survived", "no test", "suspicious"):
                yield f"{name} ({outcome})"


def _results(modules: Sequence[str], digits: str) -> Iterator[tuple[str, mutant_files.Codes]]:
    """Yield the codes of each module, in the order in which they are named.

    Mutants of a function are numbered, so those whose number ends in a digit are a fair share.
    """
    found = dict(mutant_files.results())
    for module in modules or found:
        yield module, {name: code for name, code in found.get(module, {}).items() if name[-1] in digits}


def _digits(text: str) -> str:
    if not text or set(text) - set(ALL_DIGITS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a row of digits, such as 7 or 05")
    return text


if __name__ == "__main__":
    sys.exit(main())
