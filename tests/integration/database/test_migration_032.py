"""Migration 032: a direct change next to a fold is still one, and only a fold marks an external id as an event's."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

import asyncpg
import pytest

from database import migrate
from tests.conftest import Database
from tests.support.direct_changes import changing, fetch, insert, made, rename
from tests.support.schema_shape import shape

STATE = '{"name": "folded", "description": "", "category": "technical", "external_id": null}'
VERSIONS = (
    "SELECT version, recorded_by, state::jsonb ->> 'name' AS name FROM entity_versions WHERE entity_id = $1"
    " ORDER BY version"
)
OUTBOX = "SELECT entity_id, version, state ->> 'name' AS name FROM outbox ORDER BY id"
MARKS = "SELECT external_id_from_event FROM entities ORDER BY external_id"
DIRECT, FOLDED = "plant_writer", "plant_writer/projection"


async def fold(connection: asyncpg.Connection, skill_id: UUID, tenant: str = "genesis") -> None:
    """Fold an event that gives a skill the name `folded`."""
    statement = "SELECT fold_entity($1, NULL, 'skill', $2, 'amended', now(), $3, '{}')"
    assert await connection.fetchval(statement, tenant, skill_id, STATE) is None


async def versions(database: Database, skill_id: UUID) -> list[tuple[int, str, str]]:
    """The number, maker and name of each version."""
    return [tuple(row) for row in await fetch(database.superuser_url, VERSIONS, skill_id)]


async def waiting(database: Database) -> list[tuple[UUID, int, str]]:
    """What the relay will publish."""
    return [tuple(row) for row in await fetch(database.writer_url, OUTBOX)]


@pytest.mark.parametrize("tenant", ["genesis", "acme"])
async def test_a_direct_change_before_a_fold_is_published(database: Database, tenant: str) -> None:
    """In one transaction, whatever its tenant: the fold's mark is on the versions of the fold alone."""
    folded = uuid4()
    async with changing(database.writer_url, tenant=tenant) as connection:
        changed = await insert(connection, "skill")
        await fold(connection, folded)
    assert await versions(database, changed) == [(1, DIRECT, "first")]
    assert await versions(database, folded) == [(1, FOLDED, "folded")]
    assert await waiting(database) == [(changed, 1, "first")]


async def test_a_change_and_a_fold_of_one_entity_are_two_versions(database: Database) -> None:
    """Before the fold and after it: each direct change is published with what it made."""
    skill_id = await made(database.writer_url)
    async with changing(database.writer_url) as connection:
        await rename(connection, "skill", skill_id, "before")
        await fold(connection, skill_id)
        await rename(connection, "skill", skill_id, "after")
    expected = [(1, DIRECT, "first"), (2, DIRECT, "before"), (3, FOLDED, "folded"), (4, DIRECT, "after")]
    assert await versions(database, skill_id) == expected
    assert await waiting(database) == [(skill_id, 1, "first"), (skill_id, 2, "before"), (skill_id, 4, "after")]


async def test_a_fold_that_is_refused_marks_nothing_else(database: Database) -> None:
    """Behind a savepoint: what is changed after it is a direct change."""
    skill_id = await made(database.writer_url)
    async with changing(database.writer_url) as connection:
        with pytest.raises(asyncpg.NotNullViolationError):
            async with connection.transaction():
                await connection.execute(
                    "SELECT fold_entity('genesis', NULL, 'skill', $1, 'amended', now(), '{}', '{}')", skill_id
                )
        await rename(connection, "skill", skill_id, "after")
    assert await versions(database, skill_id) == [(1, DIRECT, "first"), (2, DIRECT, "after")]


async def marks(database: Database) -> Iterable[bool]:
    """Whether events brought the external ids, in their order."""
    return [row[0] for row in await fetch(database.superuser_url, MARKS)]


async def test_nobody_says_of_a_new_external_id_that_an_event_brought_it(database: Database) -> None:
    """It would not be enforced: a second one is refused."""
    url = database.writer_url
    async with changing(url) as connection:
        await insert(connection, "skill", external_id="mine", external_id_from_event=True)
    assert await marks(database) == [False]
    with pytest.raises(asyncpg.UniqueViolationError, match="entities_external_id"):
        async with changing(url) as connection:
            await insert(connection, "skill", external_id="mine", external_id_from_event=True)


@pytest.mark.parametrize("also", ["", ", external_id = 'theirs'"], ids=["alone", "with another id"])
async def test_nobody_marks_an_external_id_later(database: Database, also: str) -> None:
    """Neither one that stays as it is, nor one that is set with the mark."""
    async with changing(database.writer_url) as connection:
        skill_id = await insert(connection, "skill", external_id="mine")
        statement = f"UPDATE entities SET external_id_from_event = true{also} WHERE id = $1"
        assert await connection.execute(statement, skill_id) == "UPDATE 1"
    assert await marks(database) == [False]


async def test_what_events_brought_keeps_its_mark(database: Database) -> None:
    """Through direct changes of other columns. Without it an id is enforced: two entities have this one."""
    state = STATE.replace("null", '"same"')
    statement = "SELECT fold_entity('genesis', NULL, 'skill', $1, 'defined', now(), $2, '{}')"
    async with changing(database.writer_url) as connection:
        for _ in range(2):
            await connection.execute(statement, uuid4(), state)
        await connection.execute("UPDATE entities SET tags = '{a}'")
    assert await marks(database) == [True, True]
    with pytest.raises(asyncpg.UniqueViolationError, match="entities_external_id"):
        async with changing(database.writer_url) as connection:
            await connection.execute("UPDATE entities SET external_id_from_event = false")


async def test_it_goes_down_and_up_again(database: Database) -> None:
    """Up again, the schema is the one before."""
    before = shape(database.owner_url)
    migrate.downgrade(database.owner_url, "-1")
    assert shape(database.owner_url) != before
    migrate.upgrade(database.owner_url)
    assert shape(database.owner_url) == before
