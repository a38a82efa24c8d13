"""The read model `registry`: entity tables that events fill, next to changes that are made in them directly."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from audit.canonical import headers_bytes
from database.errors import DatabaseUnreachable
from projections import engine
from projections.engine import PartitionProjector
from projections.fold import fold_slice
from projections.install import install
from projections.session import Session
from projections.staging import Staging
from relay.outbox import FIRST, Outbox
from relay.outbox_mapper import OutboxRow, event_of
from schemas.entity_states import SkillState
from schemas.events import AgentAvailable, AgentOnboarded, EntityAmended, Event, SkillRegistered
from schemas.sender_headers import RELAY_PRODUCER, change_headers, sender_headers
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.direct_changes import changing, delete, fetch, insert, made, rename
from tests.support.made_models import REGISTRY
from tests.support.poison_records import key_of, skip, unreadable
from tests.support.waiting import wait_until_async

NOW = datetime(2026, 11, 1, tzinfo=UTC)
VERSIONS = "SELECT version, recorded_by, state::jsonb ->> 'name' AS name FROM entity_versions WHERE entity_id = $1"
WAITING = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
CLASHES = f"SELECT entity_id, events, last_reason FROM {REGISTRY.schema}.registry_clashes ORDER BY entity_id"

Published = tuple[Event | Record, Sequence[tuple[str, bytes]]]


UPSTREAM = sender_headers("genesis", key_id="7")


class Scene:
    """One partition whose log the registry follows, and the relay's side of the outbox without Kafka between them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._projector = PartitionProjector(database.writer_url, TOPIC, 0, [REGISTRY])
        self._next_offset = 0
        self.acquire()

    def acquire(self) -> None:
        """Become the partition's owner, again."""
        self._token = self._projector.acquire(WATERMARKS).token

    def apply(self, *events: Event | Published) -> None:
        """Apply a batch: events of upstream, and those of the relay with their headers."""
        pairs = [(each, UPSTREAM) if isinstance(each, Event) else each for each in events]
        batch = batch_of([event for event, _ in pairs], token=self._token, start=self._next_offset)
        headers = [headers_bytes(list(sent)) for _, sent in pairs]
        self._projector.project(dataclasses.replace(batch, headers=headers))
        self._next_offset += len(pairs)

    async def relay(self) -> list[Published]:
        """Take the events of all that waits in the outbox, as the relay publishes them."""
        connection = await asyncpg.connect(self.database.writer_url)
        try:
            outbox = Outbox(connection)
            rows = await outbox.unsent(FIRST, 100)
            await outbox.mark_sent([row.id for row in rows])
            return [(event_of(row), _headers(row)) for row in rows]
        finally:
            await connection.close()

    async def versions(self, entity_id: UUID) -> list[tuple[Any, ...]]:
        """The version, maker and name of each version of an entity."""
        rows = await fetch(self.database.superuser_url, f"{VERSIONS} ORDER BY version", entity_id)
        return [tuple(row) for row in rows]

    async def clashes(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await fetch(self.database.superuser_url, CLASHES)]

    def close(self) -> None:
        self._projector.close()


def _headers(row: OutboxRow) -> Sequence[tuple[str, bytes]]:
    assert row.tenant is not None
    return *sender_headers(RELAY_PRODUCER), *change_headers(row.tenant, row.version)


@pytest.fixture(params=[100, 0], ids=["inline", "copied"])
def scene(database: Database, superuser: Session, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The registry, resumed, with batches in the statement or by COPY."""
    install(database.owner_url, [REGISTRY])
    superuser.script("UPDATE read_model_builds SET paused = projection <> 'registry'")
    with pytest.MonkeyPatch.context() as patched, contextlib.closing(Scene(database)) as opened:
        patched.setattr(engine, "INLINE_RECORDS_MAX", request.param)
        yield opened


def registered(name: str, skill_id: UUID | None = None, external_id: str | None = None) -> SkillRegistered:
    return SkillRegistered(
        event_id=uuid4(), skill_id=skill_id or uuid4(), occurred_at=NOW, name=name, description="",
        category="technical", external_id=external_id,
    )  # fmt: skip


def amended(skill_id: UUID, name: str) -> EntityAmended:
    state = SkillState(name=name, description="", category="technical")
    return EntityAmended(event_id=uuid4(), entity_id=skill_id, occurred_at=NOW, entity_type="skill", skill=state)


DIRECT, FOLDED = "plant_writer", "plant_writer/projection"


async def test_two_changes_in_one_cycle_are_not_undone_by_their_echoes(scene: Scene) -> None:
    """The first echo comes when the second change is there: neither changes anything, nor adds a version."""
    skill_id = await made(scene.database.writer_url, names=["second"])
    before = await scene.versions(skill_id)
    first, second = await scene.relay()
    scene.apply(first)
    assert await scene.versions(skill_id) == before == [(1, DIRECT, "first"), (2, DIRECT, "second")]
    scene.apply(second)
    assert await scene.versions(skill_id) == before


async def test_a_change_in_another_tenant_stays_as_it_is_there(scene: Scene) -> None:
    """Its echo is skipped in its own tenant; an event of upstream about it is a clash, and changes nothing."""
    async with changing(scene.database.writer_url, tenant="acme") as connection:
        skill_id = await insert(connection, "skill")
    (echo,) = await scene.relay()
    scene.apply(echo, amended(skill_id, "taken over"))
    assert await scene.versions(skill_id) == [(1, DIRECT, "first")]
    reason = "its id is that of an entity of another tenant"
    assert await scene.clashes() == [(skill_id, 1, reason)]


async def test_what_events_make_never_comes_back(scene: Scene) -> None:
    """Neither what is new nor what is changed, in a batch or later, reaches the outbox; each event is a version."""
    agent_id, skill = uuid4(), registered("Forestry")
    onboarded = AgentOnboarded(
        event_id=uuid4(), agent_id=agent_id, occurred_at=NOW, name="a", skill_ids=(skill.skill_id,) * 2
    )
    available = AgentAvailable(event_id=uuid4(), agent_id=agent_id, occurred_at=NOW, available=True)
    scene.apply(onboarded, skill, available)
    scene.apply(amended(skill.skill_id, "Woodwork"))
    assert await scene.relay() == []
    assert await scene.versions(skill.skill_id) == [(1, FOLDED, "Forestry"), (2, FOLDED, "Woodwork")]
    assert [row[:2] for row in await scene.versions(agent_id)] == [(1, FOLDED), (2, FOLDED)]
    async with changing(scene.database.writer_url) as connection:
        await rename(connection, "skill", skill.skill_id, "Timber")
    ((_, headers),) = await scene.relay()
    assert headers[-1] == ("plant_version", b"3")


async def test_an_event_is_one_version_where_constraints_are_immediate(scene: Scene) -> None:
    """As they are behind the statement of another model in the same transaction."""
    skill_id = uuid4()
    fold = "SELECT fold_entity('genesis', NULL, 'skill', $1, 'defined', now(), $2, '{}')"
    async with changing(scene.database.writer_url) as connection:
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        await connection.execute(fold, skill_id, '{"name": "Forestry", "description": "", "category": "technical"}')
    assert await scene.versions(skill_id) == [(1, FOLDED, "Forestry")]


async def test_an_event_between_a_change_and_its_echo_stands(scene: Scene) -> None:
    """It was folded over the change, so the echo, which is of the time before, is skipped."""
    skill_id = await made(scene.database.writer_url)
    (echo,) = await scene.relay()
    scene.apply(amended(skill_id, "later"))
    scene.apply(echo)
    assert await scene.versions(skill_id) == [(1, DIRECT, "first"), (2, FOLDED, "later")]


async def test_what_was_deleted_does_not_come_back_by_its_echoes(scene: Scene) -> None:
    """The row is gone, its versions are not."""
    skill_id = await made(scene.database.writer_url)
    async with changing(scene.database.writer_url) as connection:
        await delete(connection, skill_id)
    scene.apply(*await scene.relay())
    assert await fetch(scene.database.superuser_url, "SELECT id FROM entities") == []
    assert [row[0] for row in await scene.versions(skill_id)] == [1, 2]


async def lose_entities(database: Database) -> None:
    """Empty the entity tables past their triggers, as a database that is set up again is empty."""
    lost = ("entities", "skills", "entity_versions", "outbox")
    statements = "; ".join(f"DELETE FROM {table}" for table in lost)
    connection = await asyncpg.connect(database.superuser_url)
    await connection.execute(f"SET session_replication_role = replica; {statements}")
    await connection.close()


@pytest.mark.parametrize("size", [1, 4], ids=["one by one", "in one batch"])
async def test_an_echo_that_has_waited_still_names_its_tenant(scene: Scene, size: int) -> None:
    """Behind a poison record, released by a control record; live, and folded from the log again."""
    async with changing(scene.database.writer_url, tenant="acme") as connection:
        skill_id = await insert(connection, "skill")
    async with changing(scene.database.writer_url, tenant="acme") as connection:
        await rename(connection, "skill", skill_id, "second")
    first, second = await scene.relay()
    await lose_entities(scene.database)
    records = [first, (unreadable(skill_id), UPSTREAM), second, (skip(key_of(skill_id), 1), UPSTREAM)]
    for start in range(0, len(records), size):
        scene.apply(*records[start : start + size])
    expected = [(1, FOLDED, "first"), (2, FOLDED, "second")]
    assert await scene.versions(skill_id) == expected
    await lose_entities(scene.database)

    staging = Staging([REGISTRY])
    with contextlib.closing(Session(scene.database.writer_url)) as session:
        staging.open(session)
        session.begin()
        assert fold_slice(session, staging, [REGISTRY], TOPIC, 0, (0, 4)) == 4
        session.commit()
    assert await scene.versions(skill_id) == expected
    assert await scene.clashes() == []


async def test_changes_that_the_database_has_lost_are_made_again(scene: Scene) -> None:
    """In their tenants, by the echoes in the log: an empty database is filled with what another one had."""
    async with changing(scene.database.writer_url, tenant="acme") as connection:
        skill_id = await insert(connection, "skill")
    async with changing(scene.database.writer_url, tenant="acme") as connection:
        await rename(connection, "skill", skill_id, "second")
    echoes = await scene.relay()
    await lose_entities(scene.database)
    scene.apply(*echoes)
    assert await scene.versions(skill_id) == [(1, FOLDED, "first"), (2, FOLDED, "second")]
    rows = await fetch(scene.database.superuser_url, "SELECT governance_agent_id FROM skills")
    assert [row[0] for row in rows] == ["acme"]
    assert await scene.relay() == []


async def test_nobody_but_the_relay_names_a_tenant(scene: Scene) -> None:
    """Headers of another producer are not believed: the event belongs to the first tenant."""
    event = registered("Forestry")
    scene.apply((event, [*sender_headers("genesis", key_id="7"), *change_headers("acme", 3)]))
    rows = await fetch(scene.database.superuser_url, "SELECT governance_agent_id FROM skills")
    assert [row[0] for row in rows] == ["genesis"]


async def test_an_external_id_is_enforced_for_direct_changes_alone(scene: Scene) -> None:
    """Events may bring one that another entity has; who sets one directly is refused as before."""
    one, two, three = (registered(name, external_id="same") for name in ("one", "two", "three"))
    scene.apply(one, two)
    url = scene.database.writer_url
    change = "UPDATE entities SET external_id = $2 WHERE id = $1"
    async with changing(url) as connection:
        await connection.execute(change, one.skill_id, "mine")
        await insert(connection, "skill", external_id="same")
    scene.apply(three)
    with pytest.raises(asyncpg.UniqueViolationError, match="entities_external_id"):
        async with changing(url) as connection:
            await connection.execute(change, two.skill_id, "mine")
    assert await scene.clashes() == []


async def test_a_batch_that_is_given_up_leaves_nothing_and_is_folded_once(scene: Scene, superuser: Session) -> None:
    """The worker's session ends in the middle of the batch's transaction: the next owner folds it, one version each."""
    event = registered("Forestry")
    superuser.script(
        "CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql"
        " SECURITY DEFINER AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'",
        "CREATE TRIGGER end_session AFTER UPDATE ON checkpoints FOR EACH ROW EXECUTE FUNCTION end_session()",
    )
    with pytest.raises(DatabaseUnreachable):
        scene.apply(event)
    superuser.script("DROP TRIGGER end_session ON checkpoints", "DROP FUNCTION end_session()")
    assert await scene.versions(event.skill_id) == []
    scene.acquire()
    scene.apply(event, event)
    assert await scene.versions(event.skill_id) == [(1, FOLDED, "Forestry")]


async def test_a_fold_that_deadlocks_with_a_direct_change_comes_after_it(scene: Scene, superuser: Session) -> None:
    """Postgres ends the fold's transaction: its batch is folded again, the change is published, and no model stops."""
    superuser.script(f"ALTER ROLE plant_writer IN DATABASE {scene.database.name} SET deadlock_timeout = '3s'")
    first, second = sorted([await made(scene.database.writer_url), await made(scene.database.writer_url)])
    await scene.relay()
    scene.acquire()
    batch = [amended(first, "folded"), amended(second, "folded")]
    async with changing(scene.database.superuser_url) as connection:
        await connection.execute("SET LOCAL deadlock_timeout = '1h'")
        await rename(connection, "skill", second, "changed")
        folding = asyncio.create_task(asyncio.to_thread(scene.apply, *batch))
        await wait_until_async(lambda: superuser.query(WAITING) == [(1,)], "the fold waits")
        await rename(connection, "skill", first, "changed")
    with pytest.raises(DatabaseUnreachable, match="deadlock"):
        await folding
    scene.acquire()
    scene.apply(*batch)
    for skill_id in (first, second):
        assert [name for *_, name in await scene.versions(skill_id)] == ["first", "changed", "folded"]
    assert len(await scene.relay()) == 2
    assert superuser.query("SELECT stop_reason FROM model_checkpoints WHERE stop_reason IS NOT NULL") == []
