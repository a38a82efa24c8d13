"""Repairing the build that readers see: only rows that differ from the rebuild are written."""

from __future__ import annotations

import threading

import pytest

from projections.rebuild import comparison, repair
from projections.rebuild.errors import BuildLag
from projections.rebuild.repair import BuildRepair
from projections.session import Session
from tests.conftest import Database
from tests.support.made_models import AGENTS, SKILLS
from tests.support.rebuilding import ProjectedLog, rebuilt

TABLE = "skills_v1.skill_validations"
WRITTEN = f"SELECT skill_id::text AS s, agent_id::text AS a, xmin::text AS x FROM {TABLE} ORDER BY 1, 2"


def damage(superuser: Session) -> int:
    """Change a row, delete one, and add one; returns how many rows there were."""
    ((rows,),) = superuser.query(f"SELECT count(*) AS n FROM {TABLE}")
    first, second = superuser.query(f"SELECT ctid::text AS place FROM {TABLE} ORDER BY skill_id, agent_id LIMIT 2")
    superuser.script(
        f"INSERT INTO {TABLE} (skill_id, agent_id, validator_id, score, validated_at, validation_offset)"
        f" SELECT gen_random_uuid(), agent_id, validator_id, score, validated_at, 1 FROM {TABLE}"
        f" WHERE ctid = '{first[0]}'",
        f"UPDATE {TABLE} SET score = score + 1 WHERE ctid = '{first[0]}'",
        f"DELETE FROM {TABLE} WHERE ctid = '{second[0]}'",
    )
    return int(rows)


def test_only_rows_that_differ_are_merged(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was changed, one that is missing and one that was added; the others are not written again."""
    monkeypatch.setattr(repair, "MERGED_ROWS", 2)
    made = rebuilt(database, owner, "skills")
    rows = damage(superuser)
    before = set(superuser.query(WRITTEN))
    mending = BuildRepair(owner, SKILLS, made)
    mending.find()
    skills, validations = mending.found
    assert (skills.table, skills.rows) == ("skills", 0)
    assert (validations.changed, validations.missing, validations.added) == (1, 1, 1)
    assert {each.what for each in validations.named} == {"changed", "missing", "added"}
    assert set(superuser.query(WRITTEN)) == before

    merged: list[int] = []
    mending.merge(merged.append, 0)
    assert merged == [2, 1]
    assert comparison.compare(owner, SKILLS, made).same
    assert len(before & set(superuser.query(WRITTEN))) == rows - 2
    mending.find()
    assert [each.rows for each in mending.found] == [0, 0]


def test_a_repair_that_is_killed_is_finished_by_the_next(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was merged stays, and the next one finds what is left."""
    monkeypatch.setattr(repair, "MERGED_ROWS", 1)
    made = rebuilt(database, owner, "skills")
    damage(superuser)
    mending = BuildRepair(owner, SKILLS, made)
    mending.find()

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mending.merge(killed, 0)
    mending.find()
    assert sum(each.rows for each in mending.found) == 2
    mending.merge(lambda _: None, 0)
    assert comparison.compare(owner, SKILLS, made).same


def test_builds_at_other_offsets_are_not_merged(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Neither found nor written: the rebuild lacks what the live build has."""
    made = rebuilt(database, owner)
    mending = BuildRepair(owner, AGENTS, made)
    superuser.script("UPDATE agents_v1.agents SET name = 'forged'")
    mending.find()
    projected_log.project(10)
    with pytest.raises(BuildLag):
        mending.merge(lambda _: None, 0)
    with pytest.raises(BuildLag):
        mending.find()
    projected_log.look()
    mending.find()
    mending.merge(lambda _: None, 0)
    assert comparison.compare(owner, AGENTS, made).same


def test_a_build_is_repaired_while_workers_project(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that events change meanwhile are taken over as they are then, and no event is undone."""
    monkeypatch.setattr(repair, "MERGED_ROWS", 1)
    made = rebuilt(database, owner)
    projected_log.look()
    superuser.script("UPDATE agents_v1.agents SET name = 'forged', available = NOT available")
    mending = BuildRepair(owner, AGENTS, made)
    mending.find()
    done = threading.Event()

    def project() -> None:
        while not done.is_set():
            projected_log.project(3)

    projecting = threading.Thread(target=project)
    projecting.start()
    try:
        mending.merge(lambda _: None, 60)
    finally:
        done.set()
        projecting.join()
    assert comparison.compare(owner, AGENTS, made).same
