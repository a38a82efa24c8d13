"""Which lines and branches tests run, seen by probes that go once they were reached; coverage.py judges and shows them.

coverage.py's own tracer is called at every line of every module, measured or not, as long as Python has no cheaper way
to see branches (before 3.14): half as much processor time again. slipcover puts probes into the measured modules alone
and takes them out again. What it saw is written as coverage.py's data, in the terms of coverage.py's own analysis.
`PYTEST_PLUGINS=tests.support.measured_lines` asks for it: tests run in this process or in workers of pytest-xdist.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import slipcover
from coverage import Coverage, CoverageData
from coverage.parser import PythonParser

Arc: TypeAlias = tuple[int, int]
"""From one line to another; what enters or leaves a function has a negative number at that end."""

_ASKED: Final = "PYTEST_PLUGINS"
_OUTPUT: Final = "measured_lines"
_ENTRY: Final = -1

_probes: list[slipcover.Slipcover] = []
"""The one of this process, if tests run in it."""
_seen: dict[str, set[Any]] = defaultdict(set)
"""Source file to lines, and to pairs of lines, that were reached in any process."""
_marked: dict[str, set[Arc]] = defaultdict(set)
"""Source file to the branches that have a probe."""


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Put probes into what is imported from now on, before the first module of ours is."""
    tests_elsewhere = getattr(early_config.known_args_namespace, "numprocesses", None)
    if tests_elsewhere and "PYTEST_XDIST_WORKER" not in os.environ:
        return
    del os.environ[_ASKED]  # Not for the runs of pytest that tests start.
    matcher = slipcover.FileMatcher(sources=_sources())
    probes = slipcover.Slipcover(branch=True)
    slipcover.wrap_spec_from_file_location(probes, matcher)
    slipcover.ImportManager(probes, matcher).__enter__()
    _probes.append(probes)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for probes in _probes:
        probes.get_coverage()  # Lines that were reached last are moved to the others.
        seen = probes.all_seen
        found = {file: (list(seen.get(file, ())), list(marked)) for file, marked in probes.code_branches.items()}
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output[_OUTPUT] = found
        else:
            _add(found)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _add(getattr(node, "workeroutput", {}).get(_OUTPUT, {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _seen and not hasattr(config, "workeroutput"):
        data = CoverageData()
        data.add_arcs({file: arcs(file, _seen[file], _marked[file]) for file in _marked})
        data.touch_files(str(file.resolve()) for source in _sources() for file in Path(source).rglob("*.py"))
        data.write()


def _sources() -> list[str]:
    sources = Coverage().get_option("run:source")
    assert isinstance(sources, list)
    return [str(each) for each in sources]


def _add(found: dict[str, tuple[list[Any], list[Arc]]]) -> None:
    for file, (seen, marked) in found.items():
        _seen[file].update(seen)
        _marked[file].update(marked)


def arcs(file: str, seen: Iterable[Any], marked: Iterable[Arc]) -> set[Arc]:
    """Return what coverage.py would have recorded of a file of which probes saw these lines and branches."""
    parser = PythonParser(filename=file)
    parser.parse_source()
    targets: dict[int, set[int]] = defaultdict(set)
    origins: dict[int, set[int]] = defaultdict(set)
    for start, end in parser.arcs():
        targets[start].add(end)
        origins[end].add(start)
    lines = {each for each in seen if isinstance(each, int)}
    taken = {each for each in seen if isinstance(each, tuple)}
    found = {(_ENTRY, line) for line in lines}
    for start, ends in targets.items():
        if len(ends) < 2:
            continue
        named = {end for origin, end in marked if origin == start}
        reached = {end for origin, end in taken if origin == start}
        if not named:  # No probe is at `case` and `except`: what is only reached from there says it.
            reached = {end for end in ends & lines if origins[end] == {start}}
        elif reached - ends and len(ends - named) == 1:  # Both name where it goes on after a block, not always alike.
            reached |= ends - named
        found |= {(start, end) for end in reached & ends}
    return found
