"""Where tests stand, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

TESTS = ROOT / "tests"
MIRRORED = ("unit", "integration")
NO_PACKAGES = {"unit/repository", "unit/support"}
"""Folders of tests about the repository's files, and about what tests share."""
FILES = sorted(TESTS.rglob("*.py"))
TEST_FILES = [file for file in FILES if file.name.startswith("test_")]


def imports(file: Path) -> Iterator[str]:
    """Yield the full name of each module that a file imports, and of each name that it imports from one."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def named(file: Path) -> str:
    return str(file.relative_to(TESTS))


def test_tests_import_neither_benchmarks_nor_each_other() -> None:
    """What tests and benchmarks share stands in `tests/support`, and so does what two files of tests share."""
    found = [(named(file), name) for file in FILES for name in imports(file)]
    assert [each for each in found if each[1].partition(".")[0] == "benchmarks"] == []
    assert [each for each in found if each[1].startswith("tests.") and ".test_" in each[1]] == []


def test_folders_of_tests_mirror_packages() -> None:
    """Each folder of unit and integration tests has the name and path of a package."""
    folders = {file.parent.relative_to(TESTS) for file in TEST_FILES if named(file).startswith(MIRRORED)}
    wrong = [
        str(folder)
        for folder in folders
        if str(folder) not in NO_PACKAGES and not (ROOT.joinpath(*folder.parts[1:]) / "__init__.py").exists()
    ]
    assert not wrong


def test_nothing_but_the_one_wait_sleeps() -> None:
    """A test waits for a condition by `wait_until`; what sleeps or polls by itself is listed here with its reason."""
    sleeping = {named(file) for file in FILES if _sleeps(file)}
    assert sleeping == {"support/waiting.py", *PACED}


PACED = {
    "integration/database/test_transactions.py": "a transaction stays open for a moment, so that others overlap it",
    "integration/deliveries/deliverer/test_endpoint_shares.py": "a receiver is slow, and events come in meanwhile",
    "integration/server/test_connections.py": "the process must read a request's head before its body",
    "integration/server/test_processes.py": "a producer waits before it connects again",
    "integration/ingress/test_cloud_events.py": "a producer sends a byte at a time, or waits for its rate",
    "integration/streams/test_consume.py": "a member reads slowly, so that another may join",
    "support/apicurio.py": "a download is tried again",
    "support/faults/change_load.py": "a load keeps its pace",
    "support/raw_answers.py": "a receiver sends a byte at a time",
    "support/steady_load.py": "a load keeps its pace",
}


def _sleeps(file: Path) -> bool:
    calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
    names = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "sleep"]
    return any(not isinstance(call.args[0], ast.Constant) or call.args[0].value != 0 for call in names if call.args)


WAITING_CALLS = {"timeout", "wait_for", "wait", "join", "result"}
"""Calls that take how long to wait at most."""
SHORT_SECONDS = 5.0
"""What is shorter is no deadline: something that does not happen is waited for so long."""


def test_no_deadline_is_a_number_of_its_own() -> None:
    """A minute may be too short on a busy machine: deadlines are that of the one wait."""
    assert [f"{named(file)}:{line}" for file in FILES for line in _deadlines(file)] == []


def _deadlines(file: Path) -> Iterator[int]:
    """Yield the lines of a file that wait for a number of seconds, short ones aside."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITING_CALLS:
            given = [*node.args, *(each.value for each in node.keywords if each.arg == "timeout")]
            numbers = [each.value for each in given if isinstance(each, ast.Constant)]
            if any(isinstance(each, int | float) and each >= SHORT_SECONDS for each in numbers):
                yield node.lineno
