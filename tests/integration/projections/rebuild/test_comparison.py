"""Comparing two builds in one snapshot: what is equal, what is not, and what can't be compared."""

from __future__ import annotations

import threading

import pytest

from projections.rebuild import comparison
from projections.rebuild.errors import BuildLag
from projections.session import Session
from tests.conftest import Database
from tests.support.made_models import AGENTS, SKILLS
from tests.support.rebuilding import REBUILT, ProjectedLog, rebuilt, session_of


def test_every_rebuild_is_verified_and_its_rows_are_counted(
    database: Database, projected_log: ProjectedLog, owner: Session
) -> None:
    """Before workers have it and after, since nothing is at another offset."""
    for model in REBUILT:
        made = rebuilt(database, owner, model.name)
        found = comparison.compare(owner, model, made)
        assert found.same
        assert [each.table for each in found.tables] == list(model.tables)
        assert found.rows == sum(each.rows for each in found.tables) > 0
        assert found.different == []


def test_rows_that_differ_are_named(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """One that was changed, one that is missing, one that was added, by their keys; the other table is the same."""
    made = rebuilt(database, owner, "skills")
    table = f"{made.schema}.skill_validations"
    ((skill, agent),) = superuser.query(f"SELECT skill_id::text AS s, agent_id::text AS a FROM {table} LIMIT 1")
    row = f"skill_id = '{skill}' AND agent_id = '{agent}'"
    superuser.script(f"UPDATE {table} SET score = score + 1 WHERE {row}")
    found = comparison.compare(owner, SKILLS, made)
    assert [tuple(each) for each in found.different] == [("skill_validations", f"({skill},{agent})", "changed")]
    assert {each.table: each.same for each in found.tables} == {"skills": True, "skill_validations": False}

    superuser.script(
        f"INSERT INTO {table} (skill_id, agent_id, validator_id, score, validated_at, validation_offset)"
        f" SELECT gen_random_uuid(), agent_id, validator_id, score, validated_at, 1 FROM {table} WHERE {row}",
        f"DELETE FROM {table} WHERE {row}",
    )
    assert sorted(each.what for each in comparison.compare(owner, SKILLS, made).different) == ["added", "missing"]


def test_builds_at_other_offsets_are_not_compared(
    database: Database, projected_log: ProjectedLog, owner: Session
) -> None:
    """Both could be right, and differ."""
    made = rebuilt(database, owner)
    projected_log.project(10)
    with pytest.raises(BuildLag, match="are not at the same offsets"):
        comparison.compare(owner, AGENTS, made)
    projected_log.look()
    assert comparison.compare(owner, AGENTS, made).same


def test_builds_are_equal_in_every_snapshot_while_workers_project(
    database: Database, projected_log: ProjectedLog, owner: Session
) -> None:
    """Once workers have the rebuild, each transaction has both at the same offsets."""
    made = rebuilt(database, owner)
    projected_log.look()
    done = threading.Event()
    found = []

    def verify() -> None:
        with session_of(database.owner_url) as session:
            while not done.is_set() or not found:
                found.append(comparison.compare(session, AGENTS, made))

    verifying = threading.Thread(target=verify)
    verifying.start()
    try:
        for _ in range(30):
            projected_log.project(5)
    finally:
        done.set()
        verifying.join()
    assert all(each.same for each in found)
