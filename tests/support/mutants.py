"""`python -m tests.support.mutants [MODULE ...]`: small faults put into the code, and how many of them tests catch.

mutmut makes the faults (its settings are in pyproject.toml) and runs, for each, the tests that reach the changed
function, shortest first, until one fails. All runs share one Kafka and one Postgres. `mutmut show NAME` prints a fault
that no test caught. A run continues where an interrupted one stopped; `make clean EXECUTE=1` removes its results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import ROOT
from tests.support.services import shared_services

FOLDER: Final = ROOT / "mutants"
MUTMUT: Final = str(Path(sys.executable).with_name("mutmut"))

OUTCOMES: Final = {
    0: "survived",
    1: "caught",
    33: "no test",
    35: "suspicious",
    36: "caught",
    -24: "caught",
    24: "caught",
}
"""mutmut's exit code of a mutant to its outcome; a test that no longer ends has caught the fault."""


class Score(NamedTuple):
    """The mutants of one module."""

    module: str
    caught: int
    missed: int
    not_run: int

    @property
    def percent(self) -> float:
        return 100 * self.caught / max(1, self.caught + self.missed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run mutmut, print a score a module and the mutants that survived; the exit code is 3 under the wanted score.

    It is 1 where mutmut could not run: results of an earlier run are no score of this one.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as audit.verifier.chain_range; default: all of the settings")
    parser.add_argument("--tenths", type=int, choices=range(1, 11), default=10, help="share of the mutants to run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--floor", type=float, default=90.0, help="percent that must be caught")
    parser.add_argument("--report-only", action="store_true", help="run nothing; print what earlier runs found")
    options = parser.parse_args(arguments)
    if not options.report_only:
        with shared_services():
            code = subprocess.run(
                [MUTMUT, "run", "--max-children", str(options.processes), *patterns(options.modules, options.tenths)],
                cwd=ROOT,
                check=False,
            ).returncode
        if code:
            print(f"mutmut ended with {code}: there is no score", file=sys.stderr)
            return 1
    scores = list(read_scores(options.modules))
    print(f"{'module':<36} {'caught':>7} {'missed':>7} {'not run':>8} {'score':>7}")
    for score in scores:
        print(f"{score.module:<36} {score.caught:>7} {score.missed:>7} {score.not_run:>8} {score.percent:>6.1f}%")
    total = Score("all", *(sum(score[column] for score in scores) for column in (1, 2, 3)))
    print(f"{total.module:<36} {total.caught:>7} {total.missed:>7} {total.not_run:>8} {total.percent:>6.1f}%")
    for name in survivors(options.modules):
        print(f"survived: {name}")
    without = set(options.modules) - {score.module for score in scores if score.caught + score.missed}
    for module in sorted(without):
        print(f"{module} has no mutant that was run: nothing was checked", file=sys.stderr)
    return 0 if not without and is_good(total, options.floor, whole=options.tenths == 10) else 3


def is_good(total: Score, floor: float, *, whole: bool) -> bool:
    """Return whether enough mutants were caught; of a whole run none may be left that has not run.

    >>> is_good(Score("all", 9, 1, 0), 90.0, whole=True), is_good(Score("all", 9, 1, 1), 90.0, whole=True)
    (True, False)
    """
    return total.caught > 0 and total.percent >= floor and not (whole and total.not_run)


def patterns(modules: Sequence[str], tenths: int) -> list[str]:
    """Return mutmut's name patterns for a share of the modules' mutants; none stands for all of them.

    Mutants of a function are numbered, so those whose number ends in certain digits are a fair share.

    >>> patterns(["ingress.rates"], 10), patterns(["ingress.rates"], 2)
    (['ingress.rates.*'], ['ingress.rates.*0', 'ingress.rates.*5'])
    >>> patterns([], 10), patterns([], 1)
    ([], ['*0'])
    """
    if tenths == 10:
        return [f"{module}.*" for module in modules]
    digits = [0, 5, 2, 7, 4, 9, 1, 6, 3, 8][:tenths]
    return [f"{start}*{digit}" for start in [f"{module}." for module in modules] or [""] for digit in digits]


def read_scores(modules: Sequence[str]) -> Iterator[Score]:
    """Yield the score of each module that has mutants, by name."""
    for module, codes in _results(modules):
        outcomes = Counter("not run" if code is None else OUTCOMES.get(code, "suspicious") for code in codes.values())
        missed = outcomes["survived"] + outcomes["no test"] + outcomes["suspicious"]
        yield Score(module, outcomes["caught"], missed, outcomes["not run"])


def survivors(modules: Sequence[str]) -> Iterator[str]:
    """Yield the mutants that no test caught, each with its outcome."""
    for _, codes in _results(modules):
        for name, code in codes.items():
            if code is not None and OUTCOMES.get(code) != "caught":
                yield f"{name} ({OUTCOMES.get(code, code)})"


def _results(modules: Sequence[str]) -> Iterator[tuple[str, dict[str, int | None]]]:
    for file in sorted(FOLDER.rglob("*.py.meta")):
        module = file.relative_to(FOLDER).as_posix().removesuffix(".py.meta").replace("/", ".")
        codes = json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes and (not modules or module in modules):
            yield module, codes


if __name__ == "__main__":
    sys.exit(main())
