"""Tampering with entities and their versions behind the triggers: whatever it is, `plant entities check` finds it."""

from __future__ import annotations

import asyncpg
import pytest

from entities.references import EntityFault
from tests.conftest import Database
from tests.support.direct_changes import changing, delete, fetch, made
from tests.support.version_chains import findings

CHANGE_HASHES = """
    UPDATE entities AS e SET version_hash = v.version_hash, hash_chain_sha256 = v.hash
    FROM entity_versions AS v WHERE v.entity_id = e.id AND v.version = {version}
"""


async def tamper(database: Database, *statements: str) -> None:
    """What a superuser can do who turns all triggers off."""
    connection = await asyncpg.connect(database.superuser_url)
    try:
        await connection.execute("SET session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


HASHED_ANEW = """
    UPDATE entity_versions SET state = '{}', version_hash = sha256('{}'), hash = entity_version_hash(previous_hash,
        entity_id, version, entity_type, operation, recorded_at, recorded_by, governance_agent_id, '{}')
"""
TAMPERING = {
    "a version's state": (
        ["UPDATE entity_versions SET state = '{}' WHERE version = 2"],
        [("broken chain", "version 2: its state is not what was hashed")],
    ),
    "a version's hash": (
        ["UPDATE entity_versions SET hash = sha256('') WHERE version = 2"],
        [("broken chain", "version 2: its hash is not that of its contents")],
    ),
    "who made a version": (
        ["UPDATE entity_versions SET recorded_by = 'plant_api' WHERE version = 3"],
        [("broken chain", "version 3: its hash is not that of its contents")],
    ),
    "a version's kind": (
        ["UPDATE entity_versions SET entity_type = 'agent' WHERE version = 2"],
        [("broken chain", "version 2: its hash is not that of its contents")],
    ),
    "a version hashed again": (
        [f"{HASHED_ANEW} WHERE version = 2"],
        [("broken chain", "version 3: its previous_hash is not the hash of the version before")],
    ),
    "the newest version hashed again": (
        [f"{HASHED_ANEW} WHERE version = 3"],
        [("tampered", "has hashes that are not those of its newest version")],
    ),
    "the newest version hashed again, and the entity's hashes": (
        [f"{HASHED_ANEW} WHERE version = 3", CHANGE_HASHES.format(version=3)],
        [("tampered", "is not what its newest version says")],
    ),
    "the first version removed": (
        ["DELETE FROM entity_versions WHERE version = 1"],
        [("broken chain", "version 2: version 1 is missing")],
    ),
    "a version removed": (
        ["DELETE FROM entity_versions WHERE version = 2"],
        [("broken chain", "version 3: version 2 is missing")],
    ),
    "the newest version removed": (
        ["DELETE FROM entity_versions WHERE version = 3"],
        [("tampered", "has hashes that are not those of its newest version")],
    ),
    "the newest version removed, and the entity's hashes set back": (
        ["DELETE FROM entity_versions WHERE version = 3", CHANGE_HASHES.format(version=2)],
        [("tampered", "is not what its newest version says")],
    ),
    "all versions removed": (["DELETE FROM entity_versions"], [("tampered", "has no versions")]),
    "the row of its kind altered": (
        ["UPDATE skills SET name = 'altered'"],
        [("tampered", "is not what its newest version says")],
    ),
    "its own row altered": (
        ["UPDATE entities SET tags = '{altered}'"],
        [("tampered", "is not what its newest version says")],
    ),
    "its time of creation altered": (
        ["UPDATE entities SET created_at = '2020-01-01'"],
        [("tampered", "is not what its newest version says")],
    ),
    "its hashes altered": (
        ["UPDATE entities SET version_hash = sha256('')"],
        [("tampered", "has hashes that are not those of its newest version")],
    ),
    "its hashes removed": (
        ["UPDATE entities SET version_hash = NULL, hash_chain_sha256 = NULL"],
        [("tampered", "has hashes that are not those of its newest version")],
    ),
    "its kind altered": (
        ["UPDATE entities SET entity_type = 'industry'"],
        [("wrong row", "has a row as skill"), ("tampered", "is not what its newest version says")],
    ),
    "its tenant altered": (
        ["UPDATE entities SET governance_agent_id = 'acme'"],
        [
            ("wrong row", "has a row as skill and is no entity"),
            ("tampered", "is gone, and no version says so"),
        ],
    ),
    "the entity removed": (
        ["DELETE FROM skills", "DELETE FROM entities"],
        [("tampered", "is gone, and no version says so")],
    ),
    "the row of its kind removed": (
        ["DELETE FROM skills"],
        [("wrong row", "has no row as skill"), ("tampered", "is not what its newest version says")],
    ),
    "the entity removed and its versions, but not the row of its kind": (
        ["DELETE FROM entities", "DELETE FROM entity_versions"],
        [("wrong row", "has a row as skill and is no entity")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERING)
async def test_tampering_behind_the_triggers_is_found(database: Database, what: str) -> None:
    """A superuser turns the triggers off and changes something: the check says what, and of which entity."""
    entity_id = await made(database.writer_url, names=["second", "third"])
    assert await findings(database.api_url) == []
    statements, expected = TAMPERING[what]
    await tamper(database, *statements)
    found = await findings(database.api_url)
    assert [(each.finding, each.detail) for each in found] == expected
    assert {each.entity_id for each in found} == {entity_id}


async def test_an_entity_that_came_back_after_its_deletion_is_found(database: Database) -> None:
    """Put back behind the triggers, it is there against the word of its newest version."""
    entity_id = await made(database.writer_url)
    ((row,),) = await fetch(database.superuser_url, "SELECT to_jsonb(e)::text FROM entities AS e")
    async with changing(database.writer_url) as connection:
        await delete(connection, entity_id)
    assert await findings(database.api_url) == []
    put_back = f"INSERT INTO entities SELECT * FROM jsonb_populate_record(NULL::entities, '{row}')"
    await tamper(database, put_back, f"INSERT INTO skills VALUES ('{entity_id}', 'genesis', 'x', '', 'technical')")
    assert await findings(database.api_url) == [
        EntityFault("tampered", "skill", entity_id, "is there, and its newest version says that it was deleted")
    ]


async def test_all_tampering_is_told_and_the_rest_is_left_alone(database: Database) -> None:
    """Every entity that was tampered with is in one report, those that were not are not, and tenants stay apart."""
    ids = sorted([await made(database.writer_url, names=["second", f"the {number}th"]) for number in range(5)])
    by_id = [f"WHERE entity_id = '{each}'" for each in ids]
    await tamper(
        database,
        f"UPDATE entity_versions SET state = '{{}}' {by_id[0]} AND version = 1",
        f"DELETE FROM entity_versions {by_id[1]} AND version = 2",
        f"UPDATE skills SET description = 'altered' WHERE id = '{ids[2]}'",
        f"UPDATE entity_versions SET recorded_at = recorded_at + interval '1 day' {by_id[4]} AND version = 3",
    )
    found = await findings(database.api_url)
    assert [(each.finding, each.entity_id) for each in found] == [
        ("tampered", ids[2]),
        ("broken chain", ids[0]),
        ("broken chain", ids[1]),
        ("broken chain", ids[4]),
    ]
    assert await findings(database.api_url, "acme") == []
