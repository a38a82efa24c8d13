"""The relay on real Kafka and Postgres: what was changed in the database is on the topic, in order, and marked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from database.errors import DatabaseUnreachable, SchemaBehind, TooMuchPrivilege
from operations.services.relay import serve_relay
from relay import outbox
from relay import session as relay_session
from relay.relay import Relay
from runtime.settings import Settings
from schemas.entity_states import AgentState, JobRoleState, TeamState
from schemas.events import EntityAmended, EntityRetired
from schemas.sender_headers import changed_version
from streams.consume import Received
from streams.errors import AnotherRelayActive, OutboxBlocked, TopicMissing
from streams.topics import DEAD_EVENTS_TOPIC
from tests.conftest import Database
from tests.support.direct_changes import KINDS, backlog, changing, delete, fetch, insert, made, rename
from tests.support.unresponsive_front import unresponsive_front
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import read_all

StartRelay = Callable[..., Awaitable[Relay]]
Amendment = EntityAmended | EntityRetired


async def once(settings: Settings, topic: str) -> int:
    """One pass of a relay."""
    return await Relay(settings, events_topic=topic).once()


async def published(settings: Settings, topic: str) -> list[Amendment]:
    """What is on the topic."""
    received = await read_all(settings, topic)
    return [event for event in map(_event, received) if isinstance(event, EntityAmended | EntityRetired)]


def _event(received: Received) -> object:
    return received.event


def name_of(event: Amendment) -> str:
    state = getattr(event, event.entity_type)
    assert isinstance(state.name, str)
    return state.name


async def names_of(settings: Settings, topic: str, entity_id: UUID) -> list[str]:
    """An entity's names in the order of its events."""
    return [name_of(event) for event in await published(settings, topic) if event.entity_id == entity_id]


async def unsent(database: Database) -> int:
    ((count,),) = await fetch(database.writer_url, "SELECT count(*) FROM outbox WHERE sent_at IS NULL")
    return int(count)


@pytest_asyncio.fixture
async def start_relay(settings: Settings, topic: str) -> AsyncIterator[StartRelay]:
    """Starts relays in this process; they stop when the test ends."""
    running: list[tuple[Relay, asyncio.Task[None]]] = []

    async def start(**options: object) -> Relay:
        relay = Relay(settings, events_topic=topic, **options)  # type: ignore[arg-type]
        running.append((relay, asyncio.create_task(relay.serve())))
        return relay

    yield start
    for relay, _ in running:
        relay.stop()
    await asyncio.gather(*(task for _, task in running))


async def active_backend(database: Database) -> int | None:
    """The backend that holds the relay's lock."""
    statement = """
        SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND (classid::bigint << 32 | objid::bigint) = $1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    found = await fetch(database.superuser_url, statement, relay_session.LOCK)
    return int(found[0][0]) if found else None


@pytest.mark.parametrize("role", ["owner", "writer"])
@pytest.mark.parametrize("kind", KINDS)
async def test_each_change_is_an_event_with_the_full_state(
    settings: Settings, database: Database, topic: str, role: str, kind: str
) -> None:
    """Inserted, renamed and deleted, by a service's role or by the owner: amended, amended, retired."""
    url = getattr(database, f"{role}_url")
    entity_id = await made(url, kind, names=["second"])
    async with changing(url) as connection:
        await delete(connection, entity_id)

    assert await once(settings, topic) == 3

    first, second, third = await published(settings, topic)
    assert [type(event) for event in (first, second, third)] == [EntityAmended, EntityAmended, EntityRetired]
    assert [name_of(event) for event in (first, second, third)] == ["first", "second", "second"]
    assert {event.entity_id for event in (first, second, third)} == {entity_id}
    assert {event.entity_type for event in (first, second, third)} == {kind}
    rows = await fetch(database.writer_url, "SELECT event_id, occurred_at, sent_at FROM outbox ORDER BY id")
    assert [(row["event_id"], row["occurred_at"]) for row in rows] == [
        (event.event_id, event.occurred_at) for event in (first, second, third)
    ]
    assert all(row["sent_at"] > row["occurred_at"] for row in rows)
    assert await once(settings, topic) == 0


async def test_the_relay_says_which_change_of_which_tenant_it_is(
    settings: Settings, database: Database, topic: str
) -> None:
    """Two changes of one cycle have a version each, and a change in another tenant names that one."""
    own = await made(database.writer_url, "skill", names=["second"])
    async with changing(database.writer_url, tenant="acme") as connection:
        other = await insert(connection, "agent")

    assert await once(settings, topic) == 3

    said = [(each.event.entity_id, changed_version(each.headers)) for each in await read_all(settings, topic)]
    assert [change for entity_id, change in said if entity_id == own] == [("genesis", 1), ("genesis", 2)]
    assert [change for entity_id, change in said if entity_id == other] == [("acme", 1)]


async def test_links_and_retirement_are_part_of_the_state(settings: Settings, database: Database, topic: str) -> None:
    """Lists of ids come with the state, and an entity that has a `deleted_at` is retired."""
    ids = sorted(uuid4() for _ in range(1000))
    async with changing(database.writer_url) as connection:
        agent = await insert(connection, "agent", links=ids)
        role = await insert(connection, "job_role", links=ids[:2])
        team = await insert(connection, "team", links=ids[2:4])
    async with changing(database.writer_url) as connection:
        await connection.execute("UPDATE entities SET deleted_at = now(), status = 'retired' WHERE id = $1", agent)

    assert await once(settings, topic) == 4

    found = {(event.entity_id, event.event_type): event for event in await published(settings, topic)}
    retired = found[agent, "genesis.entity.retired"]
    assert retired.agent == AgentState(name="first", skill_ids=tuple(ids), status="retired", available=True)
    assert found[agent, "genesis.entity.amended"].agent.status == "active"
    assert found[role, "genesis.entity.amended"].job_role == JobRoleState(
        name="first", description="Keeps databases.", seniority="mid", required_skill_ids=tuple(ids[:2])
    )
    assert found[team, "genesis.entity.amended"].team == TeamState(
        name="first", description="Moves the archive.", member_ids=tuple(ids[2:4])
    )


async def test_what_is_no_direct_change_stays_off_the_bus(settings: Settings, database: Database, topic: str) -> None:
    """Not published: what the projection's role flags, stubs, what is rolled back, and what changes nothing."""
    async with changing(database.writer_url, projecting=True) as connection:
        projected = await insert(connection, "skill")
    async with changing(database.writer_url) as connection:
        await connection.execute("INSERT INTO entities (entity_type, status) VALUES ('skill', 'stub')")
    connection = await asyncpg.connect(database.writer_url)
    await connection.execute("BEGIN; SELECT set_config('plant.governance_agent_id', 'genesis', true)")
    await insert(connection, "skill")
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK")
    await connection.close()
    async with changing(database.writer_url) as connection:
        await rename(connection, "skill", projected, "first")
    assert await once(settings, topic) == 0

    for url in (database.owner_url, database.superuser_url):
        async with changing(url, projecting=True) as connection:
            await rename(connection, "skill", projected, f"by {urlsplit(url).username}, whose flag means nothing")

    assert await once(settings, topic) == 2
    assert await names_of(settings, topic, projected) == [
        f"by {urlsplit(url).username}, whose flag means nothing" for url in (database.owner_url, database.superuser_url)
    ]


async def test_calling_itself_a_stub_hides_no_change(settings: Settings, database: Database, topic: str) -> None:
    """An entity that is described is published, whatever SQL makes of its status."""
    entity_id = await made(database.writer_url)
    async with changing(database.owner_url) as connection:
        await connection.execute("UPDATE entities SET status = 'stub' WHERE id = $1", entity_id)
    assert await once(settings, topic) == 2


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("writer", "INSERT INTO outbox DEFAULT VALUES"),
        ("writer", "UPDATE outbox SET state = '{}'"),
        ("writer", "UPDATE outbox SET event_id = gen_random_uuid()"),
        ("writer", "TRUNCATE outbox"),
        ("api", "SELECT FROM outbox"),
        ("auditor", "SELECT FROM outbox"),
        ("auditor", "DELETE FROM outbox"),
    ],
)
async def test_what_waits_is_the_relays_alone_and_only_to_mark(database: Database, role: str, statement: str) -> None:
    """Services can't make up rows or change what they say, and only the relay's role sees them."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await fetch(getattr(database, f"{role}_url"), statement)


@pytest.mark.parametrize("role", ["owner", "superuser"])
async def test_a_relay_with_more_rights_than_a_service_refuses_to_start(
    settings: Settings, database: Database, topic: str, role: str
) -> None:
    """Before it publishes anything."""
    await made(database.writer_url)
    other = msgspec.structs.replace(settings, database_writer_url=getattr(database, f"{role}_url"))
    with pytest.raises(TooMuchPrivilege):
        await serve_relay(other, topic, DEAD_EVENTS_TOPIC, 0.1)

    assert await unsent(database) == 1


async def test_an_entitys_changes_come_in_order(settings: Settings, database: Database, topic: str) -> None:
    """More changes than one entity may have in a cycle, in among others."""
    await backlog(database.superuser_url, 1_300, versions=130)
    chosen = await made(database.writer_url, names=[f"{number}" for number in range(70)])

    assert await once(settings, topic) == 1_371

    assert await names_of(settings, topic, chosen) == ["first", *(f"{number}" for number in range(70))]
    by_entity: dict[UUID, list[int]] = {}
    for event in await published(settings, topic):
        if event.entity_id != chosen:
            by_entity.setdefault(event.entity_id, []).append(int(name_of(event).split()[1]))
    assert sorted(map(len, by_entity.values())) == [130] * 10
    assert all(numbers == sorted(numbers) for numbers in by_entity.values())


POLL_SECONDS = 600
"""Longer than any deadline here."""


async def test_a_hint_wakes_the_relay(database: Database, start_relay: StartRelay) -> None:
    """A change is published long before the next poll."""
    relay = await start_relay(poll_seconds=POLL_SECONDS)
    await wait_until_async(lambda: REGISTRY.get_sample_value("plant_relay_active") == 1, "the relay is active")
    before = _sum("plant_relay_delay_seconds_count"), _sum("plant_relay_delay_seconds_sum")

    for _ in range(3):
        rows = relay.sent_rows
        await made(database.writer_url)
        await wait_until_async(lambda: relay.sent_rows == rows + 1, "the change is published")  # noqa: B023

    assert _sum("plant_relay_delay_seconds_count") - before[0] == 3
    assert _sum("plant_relay_delay_seconds_sum") - before[1] < POLL_SECONDS


def _sum(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def test_a_poll_finds_what_no_hint_told_of(database: Database, start_relay: StartRelay) -> None:
    """Rows that came without a NOTIFY."""
    relay = await start_relay()
    await wait_until_async(lambda: REGISTRY.get_sample_value("plant_relay_active") == 1, "the relay is active")

    await backlog(database.superuser_url, 3)

    await wait_until_async(lambda: relay.sent_rows == 3, "they are published")


async def test_one_relay_is_active_and_another_takes_over(
    database: Database, start_relay: StartRelay, settings: Settings, topic: str
) -> None:
    """While a session holds the lock nothing else publishes; after its end the other does."""
    first, second = await start_relay(), await start_relay()
    await made(database.writer_url)
    await wait_until_async(lambda: first.sent_rows + second.sent_rows == 1, "one of them publishes")
    standing_by, active = sorted((first, second), key=lambda relay: relay.sent_rows)
    with pytest.raises(AnotherRelayActive):
        await Relay(settings, events_topic=topic).once(lock_timeout_seconds=0.3)

    active.stop()
    await made(database.writer_url)

    await wait_until_async(lambda: standing_by.sent_rows == 1, "the other publishes")


async def test_a_relay_whose_session_ends_takes_the_lock_again(
    database: Database, start_relay: StartRelay, settings: Settings, topic: str
) -> None:
    """It notices before it publishes more, and goes on in another session."""
    relay = await start_relay(poll_seconds=600)
    await made(database.writer_url)
    await wait_until_async(lambda: relay.sent_rows == 1, "it is active")
    backend = await active_backend(database)

    await fetch(database.superuser_url, "SELECT pg_terminate_backend($1)", backend)
    entity_id = await made(database.writer_url, names=["second"])

    await wait_until_async(lambda: relay.sent_rows == 3, "it goes on")
    assert await active_backend(database) not in (None, backend)
    assert await names_of(settings, topic, entity_id) == ["first", "second"]


async def test_an_unresponsive_holder_of_the_lock_is_ended(database: Database, settings: Settings) -> None:
    """A frozen process keeps its session; who stands by ends it, and leaves one that still asks alone."""
    async with relay_session.relay_session(settings) as holder, relay_session.relay_session(settings) as other:
        assert await holder.try_lock()
        assert not await other.end_unresponsive_holder(60)
        assert not await other.try_lock()

        async def ended() -> bool:
            return await other.end_unresponsive_holder(0.2)

        await wait_until_async(ended, "the holder has sent nothing for 0.2 s")
        await wait_until_async(other.try_lock, "the lock is free")
        await wait_until_async(lambda: holder.lost, "the holder notices")


async def test_a_session_whose_server_shuts_down_is_lost(database: Database, settings: Settings) -> None:
    """Its connection is still open, and takes no statement any more: it is left, and the relay is not."""
    async with unresponsive_front(database.writer_url) as front:
        away = msgspec.structs.replace(settings, database_writer_url=front.address)
        async with relay_session.relay_session(away) as session:
            assert await session.try_lock()
            front.end_sessions()
            async with relay_session.relay_session(away) as later:
                await later.try_lock()  # the earlier message has arrived by now
            with pytest.raises(DatabaseUnreachable):
                await session.try_lock()


async def test_a_row_without_an_event_holds_up_its_entity_alone(
    settings: Settings, database: Database, topic: str
) -> None:
    """It gets its reason, others go on; its entity's rows follow in order once an operator has decided."""
    async with changing(database.writer_url) as connection:
        blocked = await insert(connection, "agent", links=[uuid4() for _ in range(1001)])
    async with changing(database.writer_url) as connection:
        await connection.execute("DELETE FROM agent_skills WHERE agent_id = $1", blocked)
    other = await made(database.writer_url)
    problems = _sum("plant_relay_unmappable_rows_total")

    for _ in range(2):
        with pytest.raises(OutboxBlocked, match="1 entities"):
            await once(settings, topic)
    await made(database.writer_url)
    with pytest.raises(OutboxBlocked):
        await once(settings, topic)

    rows = await fetch(database.writer_url, "SELECT problem, sent_at FROM outbox WHERE entity_id = $1", blocked)
    assert [row["problem"] for row in rows] == ["agent.skill_ids: Expected `array` of length <= 1000", None]
    assert [row["sent_at"] for row in rows] == [None, None]
    assert _sum("plant_relay_unmappable_rows_total") - problems == 1
    assert _sum("plant_relay_blocked_keys") == 1
    assert await names_of(settings, topic, other) == ["first"]

    await fetch(database.writer_url, "DELETE FROM outbox WHERE problem IS NOT NULL")
    assert await once(settings, topic) == 1
    assert [event.agent.skill_ids for event in await published(settings, topic) if event.agent] == [()]


async def test_more_blocked_entities_than_a_round_takes_hold_up_nobody(
    settings: Settings, database: Database, topic: str
) -> None:
    """Rows that wait for an operator fill pages, and the relay goes on to the pages behind them."""
    await backlog(database.superuser_url, 1_200)
    await fetch(database.superuser_url, "UPDATE outbox SET problem = 'seen before' WHERE id % 12 <> 0")

    with pytest.raises(OutboxBlocked, match="1100 entities"):
        await once(settings, topic)

    assert len(await published(settings, topic)) == 100


async def test_old_rows_go_and_others_stay(database: Database, start_relay: StartRelay) -> None:
    """What was sent longer ago than seven days is deleted, a thousand at a time; unsent rows never are."""
    await backlog(database.superuser_url, 2_600)
    await fetch(
        database.superuser_url,
        """
        UPDATE outbox SET occurred_at = now() - interval '9 days',
            sent_at = CASE WHEN id <= 2500 THEN now() - CASE WHEN id % 2 = 0 THEN interval '8 days'
                                                             ELSE interval '6 days' END END,
            problem = CASE WHEN id > 2500 THEN 'blocked' END
        """,
    )
    await made(database.writer_url)

    await start_relay()
    found: list[list[object]] = []

    async def purged() -> bool:
        rows = await fetch(
            database.writer_url,
            "SELECT count(*) FILTER (WHERE sent_at < now() - interval '7 days'), count(sent_at), count(*) FROM outbox",
        )
        found[:] = [list(rows[0])]
        return found == [[0, 1251, 1351]]

    await wait_until_async(purged, f"old rows are gone: {found}")


async def test_unsent_rows_are_found_by_their_index(database: Database, settings: Settings) -> None:
    """However many rows were sent, a cycle reads a page of a small index, and next to nothing when none waits.

    So it does when a backlog has come of which statistics say nothing.
    """
    await backlog(database.superuser_url, 200_000)
    await fetch(database.superuser_url, "UPDATE outbox SET sent_at = now() WHERE id % 200 <> 0")
    await fetch(database.superuser_url, "VACUUM ANALYZE outbox")

    full = await _plan(database, outbox.UNSENT, outbox.FIRST, 500)
    await fetch(database.superuser_url, "UPDATE outbox SET sent_at = now() WHERE sent_at IS NULL")
    await fetch(database.superuser_url, "VACUUM ANALYZE outbox")
    empty = await _plan(database, outbox.UNSENT, outbox.FIRST, 500)
    purge = await _plan(database, outbox.PURGE, 0, 1_000, 7)
    await fetch(database.superuser_url, "UPDATE outbox SET sent_at = NULL")
    unforeseen = await _plan(database, outbox.UNSENT, outbox.FIRST, 500)

    for plan in (full, empty, unforeseen):
        assert [node["Index Name"] for node in _nodes(plan) if "Index Name" in node] == ["outbox_unsent"]
        assert not [node for node in _nodes(plan) if node["Node Type"] in ("Seq Scan", "Sort", "Incremental Sort")]
    assert full["Actual Rows"] == unforeseen["Actual Rows"] == 500
    assert _blocks(full) < 1_500
    assert _blocks(unforeseen) < 5_000
    assert _blocks(empty) < 10
    assert not [node for node in _nodes(purge) if node["Node Type"] == "Seq Scan"]
    assert _blocks(purge) < 4_000


async def _plan(database: Database, statement: str, *values: object) -> dict[str, object]:
    """As the relay runs it: prepared, and planned without the values."""
    connection = await asyncpg.connect(database.writer_url, server_settings=relay_session.SESSION)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        (row,) = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *values)
        plan: dict[str, object] = json.loads(row[0])[0]["Plan"]
        return plan
    finally:
        await connection.close()


def _nodes(plan: dict[str, object]) -> list[dict[str, object]]:
    below = plan.get("Plans", [])
    assert isinstance(below, list)
    return [plan, *(node for child in below for node in _nodes(child))]


def _blocks(plan: dict[str, object]) -> int:
    return int(str(plan["Shared Hit Blocks"])) + int(str(plan["Shared Read Blocks"]))


async def test_a_topic_that_is_missing_is_named(settings: Settings, database: Database) -> None:
    """Nothing is marked."""
    await made(database.writer_url)
    with pytest.raises(TopicMissing):
        await once(settings, "genesis.events-that-is-not-there")

    assert await unsent(database) == 1


async def test_a_database_without_an_outbox_is_named(settings: Settings, database: Database, topic: str) -> None:
    """A schema of before is no outage to wait out."""
    await fetch(database.superuser_url, "DROP TABLE outbox CASCADE")

    with pytest.raises(SchemaBehind):
        await Relay(settings, events_topic=topic).serve()


async def test_stopping_while_it_waits_is_at_once(settings: Settings, database: Database, topic: str) -> None:
    """A relay that stands by, or has nothing to do, ends when it is stopped, and the lock is free."""
    relays = [Relay(settings, events_topic=topic, poll_seconds=600) for _ in range(2)]
    tasks = [asyncio.create_task(relay.serve()) for relay in relays]

    async def taken() -> bool:
        return await active_backend(database) is not None

    await wait_until_async(taken, "one is active")
    for relay in relays:
        relay.stop()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*tasks)

    assert await active_backend(database) is None
