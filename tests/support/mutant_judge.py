"""A pytest plugin: runs the selected tests once, then again for each mutant, until a test fails.

One process judges many mutants, so Kafka, Postgres and the template database stand ready, and a mutant costs what its
tests cost. The first run notes which test reaches which function (`--mutant-map`). Then, for each mutant: the tests
that reach its function, those of the mirrored file first, then the shortest, up to a sum of seconds.

A test that failed runs once more without the mutant. If it fails then as well, something of a mutant is left in this
process: it ends, and a new one judges that mutant first. A test that takes much longer than without a mutant ends the
process too, and has caught the mutant. `tests/support/mutants.py` starts the process again.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

START_AGAIN: Final = 75
SURVIVED: Final = 0
CAUGHT: Final = 1
NO_TEST: Final = 33

OTHER_PROCESSES: Final = frozenset({"private_stack", "home", "plant"})
"""Fixtures that start a stack or commands of their own: what those run is not this process's code."""
TEST_SECONDS_MAX: Final = 10.0
"""A test that takes longer judges nothing: it waits rather than computes."""
CLEAN_TIMEOUT_SECONDS: Final = 600.0
TIMEOUT_SECONDS: Final = 30.0
TIMEOUT_FACTOR: Final = 5.0


class Reach(NamedTuple):
    """What the run without mutants has shown: seconds of each good test, and the functions that it reaches.

    `files` has the time of the last change of each file of tests; a test of a file that is as it was is not run again.
    """

    seconds: dict[str, float]
    functions: dict[str, list[str]]
    files: dict[str, float]

    def without_changed(self, files: Mapping[str, float]) -> Reach:
        """Return what still holds when the files of tests have changed at these times."""
        same = {file for file, at in files.items() if self.files.get(file) == at}
        kept = [name for name in self.seconds if name.partition("::")[0] in same]
        return Reach(
            {name: self.seconds[name] for name in kept},
            {name: self.functions[name] for name in kept},
            {file: at for file, at in self.files.items() if file in same},
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutants-file", type=Path, help="names of the mutants to judge, one a line")
    parser.addoption("--mutant-map", type=Path, help="where it is noted which test reaches which function")
    parser.addoption(
        "--judges-seconds", type=float, default=20.0, help="the sum of what the tests of a mutant take without it"
    )
    parser.addoption("--verdicts", type=Path, help="where a line of JSON is appended for each mutant")


class Judge:
    """The run of one process."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._items = {
            item.nodeid: item
            for item in session.items
            if not OTHER_PROCESSES.intersection(getattr(item, "fixturenames", ()))
        }
        self._failed = False
        self._map: Path = session.config.getoption("--mutant-map")
        self._verdicts: Path = session.config.getoption("--verdicts")
        self._seconds_max: float = session.config.getoption("--judges-seconds")
        self._caches: list[object] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    def run(self, mutants: Sequence[str]) -> None:
        reach = self._reach()
        if reach.seconds:  # what the session's fixtures make is made without a mutant
            self._passes(max(reach.functions, key=lambda name: len(reach.functions[name])), CLEAN_TIMEOUT_SECONDS)
        self._caches = list(_caches())
        for mutant in mutants:
            self._judge(mutant, reach)

    def _reach(self) -> Reach:
        """Run each test without a mutant, and note what it reaches."""
        from mutmut.mutation import trampoline

        files = {name.partition("::")[0]: item.path.stat().st_mtime for name, item in self._items.items()}
        reach = Reach({}, {}, {})
        if self._map.exists():
            reach = Reach(**json.loads(self._map.read_text("utf-8"))).without_changed(files)
        reached: set[str] = set()
        recorder = trampoline.record_trampoline_hit
        trampoline.record_trampoline_hit = lambda name, caller=None: reached.add(name)  # type: ignore[assignment]
        trampoline.set_mutant_under_test(None)
        trampoline._mutant_under_test = "stats"  # not in the environment: processes of tests run without a mutant
        for name in self._items:
            if name.partition("::")[0] in reach.files:
                continue
            self._caches = list(_caches())  # each test reaches what is remembered for those before it, too
            reached.clear()
            begun = time.monotonic()
            if not self._passes(name, CLEAN_TIMEOUT_SECONDS):
                self._note(left_out=name)
            elif reached and (seconds := time.monotonic() - begun) <= TEST_SECONDS_MAX:
                reach.seconds[name] = round(seconds, 3)
                reach.functions[name] = sorted(reached)
        trampoline.record_trampoline_hit = recorder
        trampoline._mutant_under_test = None
        reach.files.update(files)
        self._map.write_text(json.dumps(reach._asdict()), encoding="utf-8")
        return reach

    def _judge(self, mutant: str, reach: Reach) -> None:
        function = mutant.rpartition("__mutmut_")[0]
        mirrored = f"/test_{function.split('.x')[0].rpartition('.')[2]}.py::"
        judges = [name for name, functions in reach.functions.items() if function in functions and name in self._items]
        judges.sort(key=lambda name: (mirrored not in name, reach.seconds[name]))
        begun, spent = time.monotonic(), 0.0
        self._note(begun=mutant)
        for name in judges:
            spent += reach.seconds[name]
            if spent > self._seconds_max and spent > reach.seconds[name]:
                break
            if self._passes(name, TIMEOUT_SECONDS + TIMEOUT_FACTOR * reach.seconds[name], mutant):
                continue
            if not self._passes(name, TIMEOUT_SECONDS + TIMEOUT_FACTOR * reach.seconds[name]):
                self._note(polluted=mutant, test=name)
                os._exit(START_AGAIN)
            self._note(mutant=mutant, code=CAUGHT, test=name, seconds=round(time.monotonic() - begun, 2))
            return
        code = SURVIVED if judges else NO_TEST
        self._note(mutant=mutant, code=code, judges=len(judges), seconds=round(time.monotonic() - begun, 2))

    def _passes(self, name: str, timeout_seconds: float, mutant: str = "") -> bool:
        """Run a test, with nothing of the session but its fixtures kept from the one before, and return its verdict."""
        item, self._failed = self._items[name], False
        for cache in self._caches:
            cache.cache_clear()  # type: ignore[attr-defined]
        if mutant:
            os.environ["MUTANT_UNDER_TEST"] = mutant
        faulthandler.dump_traceback_later(timeout_seconds, exit=True)
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=self._session)  # type: ignore[arg-type]
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.environ.pop("MUTANT_UNDER_TEST", None)
        return not self._failed

    def _note(self, **line: object) -> None:
        with self._verdicts.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _caches() -> Iterator[object]:
    """Yield what functools remembers for this project's functions: results of a mutant must not outlive it."""
    folder = os.environ["PYTHONPATH"]
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").startswith(folder):
            yield from (value for value in vars(module).values() if hasattr(value, "cache_clear"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Have property tests try the same few examples each time, and make none smaller."""
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    profile = settings.get_profile("plant")
    settings.register_profile("mutants", profile, phases=phases, derandomize=True, database=None, max_examples=30)
    settings.load_profile("mutants")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    file: Path | None = session.config.getoption("--mutants-file")
    if file is None or session.config.option.collectonly:
        return None
    judge = Judge(session)
    session.config.pluginmanager.register(judge)
    judge.run(file.read_text("utf-8").split())
    return True
