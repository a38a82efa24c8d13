"""The lock of the read models: a version's SQL never changes."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from projections.locked_versions import (
    LockedVersion,
    ReadModelsRefused,
    lock_problems,
    locked_versions,
    render,
    versions_of_last_commit,
    versions_to_lock,
)
from projections.read_model import READ_MODELS
from tests.support.made_models import made_model

FIRST = made_model("counts", "a int", "INSERT INTO __schema__.counts SELECT 1 FROM staged_agent_rated")
CHANGED = made_model("counts", "a int", "INSERT INTO __schema__.counts SELECT 2 FROM staged_agent_rated")
SECOND = made_model("counts", "a int", CHANGED.apply_text, version=2)
LOCKED = [LockedVersion("counts", 1, FIRST.sha256)]


def test_the_read_models_of_this_release_are_locked() -> None:
    """Each one's SQL is what its version stands for, and lines of the last commit are there."""
    assert lock_problems(READ_MODELS, locked_versions(), versions_of_last_commit()) == []


def test_a_changed_fold_under_its_old_version_is_refused() -> None:
    """By the check and by the lock, which would hide it otherwise; under a new version it is locked."""
    problem = "counts: its SQL was changed and its version is still 1; raise VERSION in projections/counts/__init__.py"
    assert lock_problems([CHANGED], LOCKED, LOCKED) == [problem]
    with pytest.raises(ReadModelsRefused, match="1 problem") as refused:
        versions_to_lock([CHANGED], LOCKED)
    assert refused.value.why == problem
    assert lock_problems([SECOND], LOCKED, LOCKED) == ["counts: version 2 is not locked; run: plant projections lock"]
    added = versions_to_lock([SECOND], LOCKED)
    assert added == [LockedVersion("counts", 2, SECOND.sha256)]
    assert lock_problems([SECOND], [*LOCKED, *added], LOCKED) == []
    assert versions_to_lock([SECOND], [*LOCKED, *added]) == []


def test_a_changed_function_under_an_old_version_is_refused() -> None:
    """As a changed statement is; committed ones are permanent, and what was locked without them may get them."""
    calls = dataclasses.replace(FIRST, functions={"fold_one": "aa", "fold_two": "bb"})
    changes = dataclasses.replace(FIRST, functions={"fold_one": "aa", "fold_two": "cc"})
    (locked,) = versions_to_lock([calls], [])
    assert locked.functions == {"fold_one": "aa", "fold_two": "bb"}
    assert lock_problems([calls], [locked], LOCKED) == []
    problem = "counts: fold_two in FUNCTIONS was changed and its version is still 1; raise VERSION in "
    assert lock_problems([changes], [locked], [locked]) == [problem + "projections/counts/__init__.py"]
    with pytest.raises(ReadModelsRefused, match="1 problem"):
        versions_to_lock([changes], [locked])
    for line in (LockedVersion("counts", 1, FIRST.sha256, {"fold_one": "aa", "fold_two": "cc"}), LOCKED[0]):
        assert "committed versions are permanent" in lock_problems([], [line], [locked])[0]


def test_a_version_never_falls() -> None:
    """The former SQL under its former version would be another build than the last one."""
    locked = [*LOCKED, LockedVersion("counts", 2, SECOND.sha256)]
    (problem,) = lock_problems([FIRST], locked, None)
    assert problem == "counts: version 1 is lower than 2, which is locked; versions only rise"


@pytest.mark.parametrize(
    "now",
    [
        [],
        [LockedVersion("counts", 1, CHANGED.sha256)],
        [LockedVersion("counts", 7, FIRST.sha256)],
    ],
)
def test_committed_lines_are_permanent(now: list[LockedVersion]) -> None:
    """A line that was changed or removed is refused, whatever the folders hold."""
    (problem,) = lock_problems([], now, LOCKED)
    assert problem.startswith("counts/1: its line was changed or removed")


def test_a_version_is_locked_once() -> None:
    """Two branches that gave it to two folds are noticed where they meet."""
    problems = lock_problems([], [*LOCKED, LockedVersion("counts", 1, CHANGED.sha256)], None)
    assert problems == ["counts/1: it is locked twice"]


def test_a_statement_that_reads_rows_that_nobody_stages_is_refused() -> None:
    """Such as those of an event type that there is not."""
    model = made_model("odd", "a int", "INSERT INTO __schema__.odd SELECT 1 FROM staged_agent_hired")
    problems = lock_problems([model], [LockedVersion("odd", 1, model.sha256)], None)
    assert problems == ["odd: its apply.sql reads staged_agent_hired, and no event type has this table"]


def test_a_table_has_one_read_model() -> None:
    """Two that make a table of one name would share its view."""
    other = dataclasses.replace(FIRST, name="others")
    locked = [*LOCKED, LockedVersion("others", 1, other.sha256)]
    problems = lock_problems([FIRST, other], locked, None)
    assert problems == ["others: it makes the table counts, as counts does; readers have one view of a name"]


def test_the_lock_is_compared_with_the_last_commit(tmp_path: Path) -> None:
    """Outside a repository there is nothing to compare with."""
    file = tmp_path / "locked_versions.json"
    file.write_text(render(LOCKED), "utf-8")
    assert versions_of_last_commit(file) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    file.write_text(render([]), "utf-8")
    assert versions_of_last_commit(file) == LOCKED
    assert locked_versions(file) == []


def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    """It is no traceback."""
    file = tmp_path / "locked_versions.json"
    file.write_text("[{]", "utf-8")
    with pytest.raises(ReadModelsRefused) as refused:
        locked_versions(file)
    assert "locked_versions.json" in refused.value.why
