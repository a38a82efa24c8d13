"""Dead letters: every poison record of the log is on the dead-letter topic, as it was, with the reason."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from audit.canonical import headers_bytes
from database.errors import DatabaseUnreachable
from devstack import processes
from devstack.stack import Stack
from projections import poison_rows
from projections.checkpoints import KNOWN_REVISION
from projections.engine import PartitionProjector
from projections.read_model import READ_MODELS
from relay import dead_letters, outbox
from relay import session as relay_session
from relay.outbox_mapper import OutboxRow
from relay.relay import Relay
from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentAvailable, AgentRated
from streams.errors import KafkaUnavailable
from streams.topics import DEAD_EVENTS_TOPIC, RECORD_MAX_BYTES, apply
from tests.conftest import Database, MakeTopic
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.dead_letters import by_offset, error_header, offset_of, read_dead_letters
from tests.support.direct_changes import backlog, fetch
from tests.support.load import events
from tests.support.waiting import wait_until_async
from tests.support.webhooks import read_all

REUSED = b"event_id: its producer used it before, for another event"


@pytest.fixture
def projector(database: Database) -> Iterator[PartitionProjector]:
    made = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    yield made
    made.close()


def available(event_id: UUID, agent_id: UUID, available: bool) -> AgentAvailable:
    return AgentAvailable(event_id=event_id, agent_id=agent_id, occurred_at=datetime.now(UTC), available=available)


def poison(count: int) -> list[Record]:
    """Records without an event, each with a key and bytes of its own."""
    return [(str(uuid4()).encode(), b"nothing %d" % number) for number in range(count)]


def log(projector: PartitionProjector, records: list[Record], start: int = 0, **changes: Any) -> None:
    batch = batch_of(records, token=projector.acquire(WATERMARKS).token, start=start)
    projector.project(replace(batch, **changes))


async def relayed(settings: Settings, dead_topic: str) -> int:
    """One pass of a relay; how many dead letters it published."""
    relay = Relay(settings, events_topic=dead_topic, dead_topic=dead_topic)
    await relay.once()
    return relay.dead_letters


async def test_a_letter_is_its_record_with_the_reason(
    settings: Settings, database: Database, topic: str, projector: PartitionProjector
) -> None:
    """Key, value and headers are the record's own; what was wrong and where it stands come after them."""
    good = next(iter(events(1)))
    malformed = [("twice", b"1"), ("twice", None), ("caf\udce9", b"\xff")]
    records: list[Record] = [(codec.key(good), codec.encode(good)), (b"k", b"no event"), (None, None), (b"", b"")]
    log(projector, records, headers=[headers_bytes(each) for each in ([("ce_id", b"1")], malformed, [], [("a", b"")])])

    assert await relayed(settings, topic) == 3

    text, nothing, empty = by_offset(await read_dead_letters(settings, topic))
    assert [(key, value) for key, value, _ in (text, nothing, empty)] == records[1:]
    assert text[2][:3] == [("twice", b"1"), ("twice", None), ("caf\ufffd", b"\xff")]
    assert empty[2][0] == ("a", b"")
    assert [name for name, _ in nothing[2]] == [
        f"__connect.errors.{name}" for name in ("topic", "partition", "offset", "connector.name", "exception.message")
    ]
    reasons = await fetch(database.superuser_url, "SELECT reason FROM event_stream WHERE disposition = 'poison'")
    for offset, (letter, (reason,)) in enumerate(zip((text, nothing, empty), reasons, strict=True), 1):
        assert error_header(letter, "topic") == TOPIC.encode()
        assert (error_header(letter, "partition"), offset_of(letter)) == (b"0", offset)
        assert error_header(letter, "exception.message") == reason.encode()


async def test_an_id_that_names_another_event_is_a_dead_letter(
    settings: Settings, database: Database, topic: str, projector: PartitionProjector
) -> None:
    """The second event is not applied; its dead letter is an event that consumers can read. A repeat is none."""
    event_id, agent_id = uuid4(), uuid4()
    first, other = available(event_id, agent_id, True), available(event_id, agent_id, False)
    rated = AgentRated(event_id=event_id, agent_id=agent_id, occurred_at=datetime.now(UTC), rater_id=agent_id, rating=1)
    log(projector, [(codec.key(event), codec.encode(event)) for event in (first, other, first, rated)])

    assert await relayed(settings, topic) == 2

    assert [received.event for received in await read_all(settings, topic)] == [other, rated]
    assert [error_header(letter, "exception.message") for letter in await read_dead_letters(settings, topic)] == [
        REUSED,
        REUSED,
    ]
    state = await fetch(database.superuser_url, "SELECT available FROM agents_v1.agents")
    assert [row["available"] for row in state] == [True]


async def test_each_is_published_once_and_in_order(
    settings: Settings, topic: str, projector: PartitionProjector
) -> None:
    """More than fit a cycle, in several batches of the log: each once, those of a key in the order of the log."""
    key = str(uuid4()).encode()
    many = [(key, b"nothing %d" % number) for number in range(2 * dead_letters.DEAD_LETTERS_MAX + 10)]
    log(projector, many[:60])
    assert await relayed(settings, topic) == 60
    assert await relayed(settings, topic) == 0
    log(projector, many[60:], start=60)
    assert await relayed(settings, topic) == len(many) - 60

    found = await read_dead_letters(settings, topic)
    assert [value for _, value, _ in found] == [value for _, value in many]
    assert all(offset_of(before) + 1 == offset_of(after) for before, after in pairwise(found))


async def test_a_running_relay_publishes_them_next_to_changes(
    settings: Settings, database: Database, topic: str, projector: PartitionProjector
) -> None:
    """As they come, without a restart, and the outbox goes on as well."""
    relay = Relay(settings, events_topic=topic, dead_topic=topic, poll_seconds=0.05)
    running = asyncio.create_task(relay.serve())
    try:
        log(projector, poison(3))
        await wait_until_async(lambda: relay.dead_letters == 3, "the first three are out")
        await backlog(database.superuser_url, 5)
        log(projector, poison(2), start=3)
        await wait_until_async(lambda: (relay.dead_letters, relay.sent_rows) == (5, 5), "all are out")
    finally:
        relay.stop()
        await running


async def test_a_relay_that_dies_before_its_mark_sends_them_again(
    settings: Settings, database: Database, topic: str, projector: PartitionProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is lost; a copy has the same position in its headers, by which it is recognized."""
    log(projector, poison(3))
    real = poison_rows.ADVANCE
    monkeypatch.setattr(
        poison_rows, "ADVANCE", "SELECT pg_terminate_backend(pg_backend_pid()), $1, $2::int, $3::bigint"
    )
    with pytest.raises(DatabaseUnreachable):
        await relayed(settings, topic)
    monkeypatch.setattr(poison_rows, "ADVANCE", real)

    assert await relayed(settings, topic) == 3

    assert sorted(map(offset_of, await read_dead_letters(settings, topic))) == [0, 0, 1, 1, 2, 2]
    rows = await fetch(database.superuser_url, "SELECT next_offset FROM checkpoints WHERE consumer = 'dead_letters'")
    assert [row["next_offset"] for row in rows] == [3]


async def test_each_goes_out_once_however_many_consumers_a_partition_has(
    settings: Settings, database: Database, topic: str, projector: PartitionProjector
) -> None:
    """Owners and checkpoints of other consumers of the partition are none of the relay's."""
    log(projector, poison(3))
    others = """
        WITH owners AS (SELECT name, add_partition_owners(name, $1, 4, NULL, $2) FROM unnest('{a,b}'::text[]) AS name)
        INSERT INTO checkpoints SELECT name, $1, 0, 1 FROM owners
    """
    await fetch(database.superuser_url, others, TOPIC, KNOWN_REVISION)
    owners = "SELECT count(*) AS n FROM partition_owners WHERE partition = 0"
    assert (await fetch(database.superuser_url, owners))[0]["n"] == 3

    assert await relayed(settings, topic) == 3
    assert await relayed(settings, topic) == 0

    assert sorted(map(offset_of, await read_dead_letters(settings, topic))) == [0, 1, 2]


async def test_they_wait_for_kafka(
    settings: Settings, topic: str, projector: PartitionProjector, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a broker a relay that serves keeps trying, and one pass says so; nothing is marked."""
    log(projector, poison(1))
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    relay = Relay(away, events_topic=topic, dead_topic=topic, poll_seconds=0.05)
    running = asyncio.create_task(relay.serve())
    stderr = ""

    def tried() -> bool:
        nonlocal stderr
        stderr += capsys.readouterr().err
        return stderr.count("producer.not_connected") >= 2 and "relay.active" in stderr

    await wait_until_async(tried, "both producers have tried")
    relay.stop()
    await running
    with pytest.raises(KafkaUnavailable):
        await relayed(away, topic)
    assert await relayed(settings, topic) == 1


async def test_an_unresponsive_broker_is_waited_for(
    settings: Settings, projector: PartitionProjector, private_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Kafka does not answer no dead letter is sent again, and cycles of the outbox go on."""
    own = msgspec.structs.replace(
        settings, kafka_bootstrap_servers=private_stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"], topic_partitions=4
    )
    await apply(own)
    process = private_stack.state.kafka
    assert process is not None
    cycles, real = 0, outbox.Outbox.unsent

    async def counted(self: outbox.Outbox, from_entity_id: UUID, rows_max: int) -> list[OutboxRow]:
        nonlocal cycles
        cycles += 1
        return await real(self, from_entity_id, rows_max)

    monkeypatch.setattr(outbox.Outbox, "unsent", counted)
    relay = Relay(own, poll_seconds=0.01)
    running = asyncio.create_task(relay.serve())
    try:
        log(projector, poison(1))
        await wait_until_async(lambda: relay.dead_letters == 1, "the first is out")
        processes.freeze(process)
        log(projector, poison(3), start=1)
        await wait_until_async(lambda: len(relay._dead_letters._under_way) == 3, "three are under way")
        before = cycles
        await wait_until_async(lambda: cycles > before + 5, "cycles go on")
        os.kill(process.pid, signal.SIGCONT)
        await wait_until_async(lambda: relay.dead_letters == 4, "all are out")
    finally:
        os.kill(process.pid, signal.SIGCONT)
        relay.stop()
        await running
    assert sorted(map(offset_of, await read_dead_letters(own, DEAD_EVENTS_TOPIC))) == [0, 1, 2, 3]


async def test_a_record_that_is_too_large_leaves_its_position(
    settings: Settings, topic: str, projector: PartitionProjector
) -> None:
    """With the reason it would not fit: the dead letter says so, and names the record's position. Later ones go on."""
    value = b"x" * RECORD_MAX_BYTES
    records: list[Record] = [(b"k" * 2_000, value), (b"k", value), (b"k", b"small"), (b"k", b"headers")]
    # In the log these are below the limit; as a record, with what each name may take, they are not.
    many = [(chr(0x400 + number % 200), b"x") for number in range(75_000)]
    log(projector, records, headers=[headers_bytes(each) for each in ([], [], [], many)])
    assert await relayed(settings, topic) == 4

    found = by_offset(await read_dead_letters(settings, topic))
    assert [letter[:2] for letter in found] == [(None, None), (b"k", None), (b"k", b"small"), (b"k", None)]
    for letter in (found[0], found[1], found[3]):
        assert error_header(letter, "exception.message")
        assert b"bytes" in (dict(letter[2])["plant.left-out"] or b"")


async def test_a_letter_that_kafka_refuses_is_sent_without_its_record(
    settings: Settings, make_topic: MakeTopic, projector: PartitionProjector
) -> None:
    """It blocks neither the dead letters behind it nor changes, which have a producer of their own."""
    narrow = await make_topic(max_message_bytes="2000")
    log(projector, [(b"k", b"first"), (b"k", os.urandom(5_000)), (b"k", b"third")])
    relay = Relay(settings, events_topic=narrow, dead_topic=narrow, poll_seconds=0.05)
    running = asyncio.create_task(relay.serve())
    try:
        await wait_until_async(lambda: relay.dead_letters == 3, "all are out")
    finally:
        relay.stop()
        await running
    found = by_offset(await read_dead_letters(settings, narrow))
    assert [letter[:2] for letter in found] == [(b"k", b"first"), (b"k", None), (b"k", b"third")]


async def test_a_log_without_poison_is_not_read(settings: Settings, database: Database) -> None:
    """Looking for dead letters goes by their index, and not through the log."""
    fill = """
        INSERT INTO log_records (topic, partition, "offset", created_at, event_id, hash, headers)
        SELECT 'genesis.events', number % 4, number, now(), gen_random_uuid(), sha256('h'), $1::bytea
        FROM generate_series(1, 20000) AS number
    """
    owners = """
        INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at)
        SELECT 'projector', 'genesis.events', partition, 1, '', 0, '-infinity' FROM generate_series(0, 3) AS partition
    """
    await fetch(database.superuser_url, owners)
    await fetch(database.superuser_url, "SELECT make_log_range('genesis.events', n, 0) FROM generate_series(0, 3) AS n")
    await fetch(database.superuser_url, fill, headers_bytes([]))
    async with relay_session.relay_session(settings) as session:
        rows = await session._connection.fetch(f"EXPLAIN {poison_rows.UNSENT}", "genesis.events", 50, 1, 1, None, None)
    plan = "\n".join(row[0] for row in rows)
    assert 'Index Scan using "genesis.events/0/0_disposition_offset_idx"' in plan
    assert "/0_pkey" not in plan
