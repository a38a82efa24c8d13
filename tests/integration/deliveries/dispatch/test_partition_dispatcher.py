"""One partition's dispatcher on a real log: what it sends is what is applied, in order, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from uuid import UUID, uuid4

import msgspec
import pytest

from audit.canonical import headers_bytes
from database.errors import DatabaseUnreachable
from deliveries.delivery_id import delivery_id
from deliveries.dispatch import backfill_reader, partition_dispatcher, partition_sender, redrive_reader
from deliveries.dispatch.endpoint_directory import EndpointDirectory
from deliveries.dispatch.partition_dispatcher import ADVANCE_SECONDS, PartitionDispatcher
from deliveries.hops import first_hop
from deliveries.redrive.selection import RedriveSelection
from projections.engine import PartitionProjector
from projections.session import Session
from runtime.settings import Settings
from schemas import codec
from schemas.delivery_records import DeliveryAttempted, DeliveryQueued
from schemas.examples import examples
from streams.errors import KafkaUnavailable, SchemaNewer, TopicRecreated
from streams.watermarks import Leadership
from tests.conftest import Database
from tests.support.batches import WATERMARKS, batch_of
from tests.support.dispatching import add_endpoint, change_endpoint
from tests.support.made_attempts import attempted
from tests.support.mixed_events import MixedEvents
from tests.support.parked_streams import ParkedStream
from tests.support.partition_dispatching import (
    AGENT,
    KEY,
    OTHER,
    Know,
    SentDeliveries,
    apply,
    dispatch_all,
    in_order,
    named,
    take,
)
from tests.support.poison_records import key_of, redrive, unreadable
from tests.support.recorded_attempts import record
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import DEADLINE_SECONDS, wait_until, wait_until_async

CHECKPOINTS = "SELECT partition, next_offset FROM checkpoints WHERE consumer = 'dispatcher'"


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_sent_is_what_is_applied(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know, seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Events once each in the order in which they take effect, with the bytes that they took effect with: no repeats,
    no poison, repaired ones when they are redriven; whatever the batches, the slices and the failures of Kafka.
    """
    chance = random.Random(seed)
    made = MixedEvents(seed)
    stream = ParkedStream(0, chance, lambda: made.take(1)[0])
    records = [stream.take() for _ in range(150)]
    monkeypatch.setattr(partition_sender, "SLICE_RECORDS_MAX", chance.randrange(1, 9))
    monkeypatch.setattr(partition_dispatcher, "PART_RECORDS_MAX", chance.randrange(1, 40))
    await know(1, 2)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records)
    sent.refused = {chance.randrange(1, 60) for _ in range(6)}

    sizes = iter(lambda: chance.randrange(1, 50), 0)
    for _ in range(len(sent.refused) + 1):
        try:
            dispatch_all(dispatcher, records, sizes)
        except KafkaUnavailable:
            continue
    taken = sent.first_occurrences
    wanted = [(each.event.event_id, UUID(int=number)) for each in stream.applied for number in (1, 2)]
    assert [(each.event_id, each.endpoint_id) for each in taken] == wanted
    events = [each.event for each in stream.applied for _ in (1, 2)]
    for queued, event in zip(taken, events, strict=True):
        data = {
            name: getattr(event, name) for name in event.__struct_fields__ if name not in ("event_id", "occurred_at")
        }
        assert queued.data == msgspec.json.encode(data)
        assert (queued.occurred_at, queued.entity_id, queued.type) == (
            event.occurred_at, event.entity_id, event.event_type
        )  # fmt: skip
        assert queued.delivery_id.bytes == delivery_id(event.event_id.bytes, queued.endpoint_id.bytes)


async def test_nothing_is_sent_that_the_log_does_not_have(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know
) -> None:
    """What the log has passed of a batch is dispatched, and the rest once it is there."""
    await know(1)
    records = [named(number) for number in range(10)]
    token = dispatcher.acquire(WATERMARKS).token
    dispatcher.idle()
    apply(projector, records[:4])
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(take, dispatcher, batch_of(records, token=token))
        wait_until(lambda: len(sent.records) == 4, "four events are dispatched")
        assert not answer.done()
        apply(projector, records[4:], 4)
        assert answer.result(DEADLINE_SECONDS) == 10
    assert [each.event_id for each in sent.queued] == [each.event_id for each in records]


def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stop the dispatcher's clock, and no other; return its seconds, which a test moves."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(partition_dispatcher, "time", clock)
    return now


@pytest.mark.parametrize("leaves", [PartitionDispatcher.idle, PartitionDispatcher.close])
async def test_the_checkpoint_follows_what_is_dispatched(
    dispatcher: PartitionDispatcher, projector: PartitionProjector, know: Know, superuser: Session,
    monkeypatch: pytest.MonkeyPatch, leaves: Callable[[PartitionDispatcher], None],
) -> None:  # fmt: skip
    """Some times a second, not with each batch; and once nothing comes any more, or the partition is given up."""
    now = _stopped_clock(monkeypatch)
    await know(1)
    records = [named(number) for number in range(6)]
    apply(projector, records)
    token = dispatcher.acquire(WATERMARKS).token
    dispatcher.idle()

    def dispatch(start: int) -> int:
        assert take(dispatcher, batch_of(records[start : start + 1], token=token, start=start)) == start + 1
        return dict(superuser.query(CHECKPOINTS))[0]

    begin = dict(superuser.query(CHECKPOINTS))[0]
    assert begin == 6, "no endpoint was live before: what is in the log is given apart"
    more = [named(number) for number in range(6, 12)]
    records += more
    apply(projector, more, 6)
    assert [dispatch(start) for start in (6, 7, 8)] == [6, 6, 6]
    now[0] += ADVANCE_SECONDS
    assert [dispatch(start) for start in (9, 10)] == [10, 10]
    leaves(dispatcher)
    assert dict(superuser.query(CHECKPOINTS))[0] == 11


async def test_what_was_dispatched_beyond_the_checkpoint_comes_again_as_copies(
    make_dispatcher: Callable[[], PartitionDispatcher], sent: SentDeliveries, projector: PartitionProjector,
    know: Know, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An endpoint that was heard of in between is live from the same offset on, whoever goes on."""
    now = _stopped_clock(monkeypatch)
    monkeypatch.setattr(PartitionDispatcher, "_feed", lambda _: False)
    await know(1)
    first = make_dispatcher()
    token = first.acquire(WATERMARKS).token
    first.idle()
    records = [named(number) for number in range(8)]
    apply(projector, records)
    assert take(first, batch_of(records[:2], token=token)) == 2
    now[0] += ADVANCE_SECONDS / 2
    assert take(first, batch_of(records[2:4], token=token, start=2)) == 4
    await know(2)
    assert take(first, batch_of(records[4:6], token=token, start=4)) == 6
    second = make_dispatcher()  # the first one's session is ended by it
    acquired = second.acquire(WATERMARKS)
    assert acquired.log_end.next_offset == 4, "the checkpoint was stored before endpoint 2 was"
    rest = batch_of(records[4:], token=acquired.token, start=4)
    assert take(second, rest) == 8
    taken = [(each.source_offset, each.endpoint_id.int) for each in sent.first_occurrences]
    assert taken == [(offset, number) for offset in range(8) for number in (1, 2) if number == 1 or offset >= 4]
    assert len(sent.queued) > len(taken), "some came twice"


async def test_waiting_for_the_log_ends_when_the_partition_is_given_up(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, know: Know
) -> None:
    """So a dispatcher whose log nobody writes can be stopped."""
    await know(1)
    token = dispatcher.acquire(WATERMARKS).token
    log_checkpoints = dispatcher._parts.log_checkpoints
    taking = asyncio.create_task(dispatcher.accept(batch_of([named(1)], token=token), asyncio.to_thread))
    await wait_until_async(lambda: log_checkpoints._waiters, "it waits")
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await log_checkpoints.close()
    assert (sent.records, log_checkpoints._waiters) == ([], [])


async def test_what_does_not_wait_for_the_log_goes_on_while_a_batch_does(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    superuser: Session, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its owner may be stopped for hours: who is owed events gets them, and the checkpoint is advanced."""
    monkeypatch.setattr(partition_dispatcher, "STILL_SECONDS", 0.05)
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    records = [named(number) for number in range(6)]
    apply(projector, records[:4])
    token = dispatcher.acquire(WATERMARKS).token
    assert take(dispatcher, batch_of(records[:2], token=token)) == 2
    dispatcher._advance_at = dispatcher._feed_at = dispatcher._settle_at = float("inf")
    taking = asyncio.create_task(dispatcher.accept(batch_of(records[2:], token=token, start=2), asyncio.to_thread))
    await know(2)
    await wait_until_async(lambda: len(sent.records) == 4 + 4, "the second endpoint is given what came before")
    assert dict(superuser.query(CHECKPOINTS))[0] == 4
    assert not taking.done()
    apply(projector, records[4:], 4)
    assert await taking == 6
    await dispatcher._parts.log_checkpoints.close()
    assert [(each.source_offset, each.endpoint_id.int) for each in sent.queued if each.stream == "live"] == [
        *((offset, 1) for offset in range(4)),
        *((offset, number) for offset in (4, 5) for number in (1, 2)),
    ]


async def test_after_a_failure_in_the_event_loop_the_connection_is_closed(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know
) -> None:
    """As after one in the thread: a partition that is stopped keeps none, and is acquired again."""
    await know(1)
    records = [named(number) for number in range(3)]
    token = dispatcher.acquire(WATERMARKS).token
    dispatcher.idle()
    apply(projector, records)
    assert take(dispatcher, batch_of(records[:1], token=token)) == 1
    sent.refused = {sent.slices + 1}
    with pytest.raises(KafkaUnavailable):
        take(dispatcher, batch_of(records[1:], token=token, start=1))
    assert dispatcher._session is None
    with pytest.raises(DatabaseUnreachable, match="closed"):
        take(dispatcher, batch_of(records[1:], token=token, start=1))
    dispatch_all(dispatcher, records, itertools.repeat(5))
    assert [each.event_id for each in sent.first_occurrences] == [each.event_id for each in records]


async def test_a_gap_of_the_topic_is_passed_at_once(dispatcher: PartitionDispatcher) -> None:
    """It holds nothing that the log could have."""
    token = dispatcher.acquire(WATERMARKS).token
    assert take(dispatcher, replace(batch_of([], token=token), next_offset=3)) == 3


async def test_the_thread_is_turned_to_as_soon_as_something_may_be_fed(
    dispatcher: PartitionDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feeding takes a fifth of the time; an order that has no room now is looked at again soon."""
    now = _stopped_clock(monkeypatch)
    dispatcher.acquire(WATERMARKS)

    def settle_at(fed_seconds: float) -> float:
        def feed(_: PartitionDispatcher) -> bool:
            now[0] += fed_seconds
            return fed_seconds > 0

        monkeypatch.setattr(PartitionDispatcher, "_feed", feed)
        now[0] += 1000
        started = now[0]
        dispatcher.settle()
        return dispatcher._settle_at - started

    assert settle_at(1 / 64) == 5 / 64
    assert settle_at(0) == ADVANCE_SECONDS
    monkeypatch.setattr(partition_dispatcher, "FEED_PAUSE_SECONDS", 1 / 64)
    dispatcher._redrives._open[1] = redrive_reader.OpenRedrive(1, 9, 0, 0, 1.0)
    assert settle_at(0) == 1 / 64


async def test_an_owner_does_not_rely_on_what_was_known_of_the_log_before(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know, superuser: Session
) -> None:
    """A standby of Postgres that takes over may lack the last records: they are dispatched once it has them."""
    await know(1)
    records = [named(number) for number in range(4)]
    token = dispatcher.acquire(WATERMARKS).token
    dispatcher.idle()
    apply(projector, records)
    assert take(dispatcher, batch_of(records[:1], token=token)) == 1
    dispatcher.idle()
    superuser.script("UPDATE checkpoints SET next_offset = 1 WHERE consumer = 'projector'")
    token = dispatcher.acquire(WATERMARKS).token
    log_checkpoints = dispatcher._parts.log_checkpoints
    taking = asyncio.create_task(dispatcher.accept(batch_of(records[1:], token=token, start=1), asyncio.to_thread))
    await wait_until_async(lambda: log_checkpoints._waiters or taking.done(), "it waits")
    assert not taking.done()
    superuser.script("UPDATE checkpoints SET next_offset = 4 WHERE consumer = 'projector'")
    assert await taking == 4
    await log_checkpoints.close()
    assert [each.source_offset for each in sent.queued] == [0, 1, 2, 3]


async def test_a_former_owner_writes_nothing_more(
    make_dispatcher: Callable[[], PartitionDispatcher], sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is told the checkpoint with another's token, and it can't ask the log: its session was ended."""
    _stopped_clock(monkeypatch)  # a checkpoint that falls due would find that out sooner
    monkeypatch.setattr(partition_sender, "FEW_SECONDS", DEADLINE_SECONDS)
    await know(1)
    former, successor = make_dispatcher(), make_dispatcher()
    token = former.acquire(WATERMARKS).token
    former.idle()
    records = [named(number) for number in range(3)]
    apply(projector, records[:2])
    assert take(former, batch_of(records[:1], token=token)) == 1
    successor.acquire(WATERMARKS)
    assert take(former, batch_of(records[1:2], token=token, start=1)) == 2, "it knew that the log has it"
    apply(projector, records[2:], 2)
    with pytest.raises(DatabaseUnreachable, match=r"terminat|closed|connection"):
        take(former, batch_of(records[2:], token=token, start=2))
    assert len(sent.records) == 2
    dispatch_all(successor, records, itertools.repeat(5))
    assert [each.event_id for each in sent.first_occurrences] == [each.event_id for each in records]


async def test_few_events_that_are_applied_are_dispatched_in_the_event_loop(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The log is not asked about them. What is unusual, or much, or new, is the thread's, and so is the checkpoint."""
    now = _stopped_clock(monkeypatch)
    monkeypatch.setattr(partition_sender, "FEW_SECONDS", DEADLINE_SECONDS)
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    made = [named(number) for number in range(15)]
    records = [*made[:12], made[0], *made[12:]]
    apply(projector, records[:12])
    token = dispatcher.acquire(WATERMARKS).token

    def takes(start: int, stop: int, *, blocks: bool) -> None:
        batch = batch_of(records[start:stop], token=token, start=start)
        if blocks:
            with pytest.raises(AssertionError, match="bound method"):
                take(dispatcher, batch, blocks=False)
        assert take(dispatcher, batch, blocks=blocks) == stop

    takes(0, 1, blocks=True)  # endpoints are heard of once a partition is owned
    takes(1, 4, blocks=False)
    now[0] += ADVANCE_SECONDS
    takes(4, 5, blocks=True)  # the checkpoint is to be advanced, which was not done
    dispatcher.settle()
    takes(5, 6, blocks=False)
    await know(2)
    takes(6, 7, blocks=True)
    while dispatcher._backfills.has_unfinished:
        dispatcher.idle()
    dispatcher.settle()
    takes(7, 8, blocks=False)
    with monkeypatch.context() as bounds:
        bounds.setattr(partition_dispatcher, "FEW_RECORDS", 1)
        takes(8, 10, blocks=True)
        takes(10, 11, blocks=False)
        bounds.setattr(partition_sender, "FEW_DELIVERIES", 0)
        takes(11, 12, blocks=True)
    apply(projector, records[12:15], 12)
    takes(12, 15, blocks=True)  # one of them is a repeat
    apply(projector, records[15:], 15)
    takes(15, 16, blocks=False)
    others = [msgspec.structs.replace(examples()["genesis.agent.available"], event_id=uuid4()) for _ in range(2)]
    records += others
    apply(projector, others, 16)
    takes(16, 17, blocks=True)  # the index has no part for its type
    takes(17, 18, blocks=False)
    events = [*made, *others]
    assert [each.event_id for each in sent.queued if each.endpoint_id.int == 1] == [each.event_id for each in events]


async def test_a_repaired_event_names_the_source_of_its_poison_record(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know
) -> None:
    """It takes effect at the control record's offset, before what waited, each with a rank of its own."""
    await know(1)
    records = [
        unreadable(AGENT), named(1), (key_of(OTHER), codec.encode(named(2))), redrive(KEY, 0, named(3)),
        redrive(key_of(OTHER), 2, named(4, OTHER)), named(5),
    ]  # fmt: skip
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    headers = [headers_bytes([("x", None), ("ce_source", b"source %d" % offset)]) for offset in range(len(records))]
    batch = batch_of(records, token=projector.acquire(WATERMARKS).token)
    projector.project(replace(batch, headers=headers))
    token = dispatcher.acquire(WATERMARKS).token
    take(dispatcher, replace(batch, token=token, headers=headers))
    found = [(each.event_id.int - 1000, each.source_offset, each.source_rank, each.source) for each in sent.queued]
    assert found == [(3, 3, 0, "source 0"), (1, 3, 1, "source 1"), (4, 4, 0, "source 2"), (5, 5, 0, "source 5")]


async def test_an_endpoint_is_live_from_where_it_was_heard_of(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know, database: Database
) -> None:
    """What was dispatched before, and what a former owner may have dispatched, is read again."""
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    records = [named(number) for number in range(8)]
    apply(projector, records[:5])
    token = dispatcher.acquire(WATERMARKS).token
    take(dispatcher, batch_of(records[:2], token=token))
    await know(2, starts=(1,))
    await know(3, starts=(6,))
    apply(projector, records[5:], 5)
    take(dispatcher, batch_of(records[2:], token=token, start=2))
    session = Session(database.superuser_url)
    rows = session.query("SELECT endpoint_id::text AS id, next_offset, until_offset FROM endpoint_backfills ORDER BY 1")
    session.close()
    assert [(UUID(row[0]).int, *row[1:]) for row in rows] == [(1, 0, 0), (2, 5, 5), (3, 6, 6)]
    found = [(each.endpoint_id.int, each.stream, each.source_offset) for each in sent.queued]
    assert [offset for number, _, offset in found if number == 1] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert sorted(each[1:] for each in found if each[0] == 2) == [
        *(("backfill", offset) for offset in (1, 2, 3, 4)),
        *(("live", offset) for offset in (5, 6, 7)),
    ]
    assert [each[1:] for each in found if each[0] == 3] == [("live", 6), ("live", 7)]


async def test_a_dispatcher_that_finds_no_endpoints_begins_at_the_logs_end(
    dispatcher: PartitionDispatcher, projector: PartitionProjector
) -> None:
    """What was before is nobody's, or is read again for who asks for it."""
    apply(projector, [named(number) for number in range(5)])
    assert dispatcher.acquire(WATERMARKS).log_end.next_offset == 5


async def test_paused_endpoints_get_nothing(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    settings: Settings, directory: EndpointDirectory,
) -> None:  # fmt: skip
    """Nor do removed ones; others go on."""
    await know(1, 2, 3)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    for endpoint_id, action in zip(sorted(directory.known.active)[1:], ("pause", "remove"), strict=True):
        await change_endpoint(settings, endpoint_id, action)
    await wait_until_async(lambda: len(directory.known.active) == 1, "the directory has the states")
    apply(projector, [named(1)])
    dispatch_all(dispatcher, [named(1)], itertools.repeat(1))
    assert [each.endpoint_id.int for each in sent.queued] == [1]
    assert [each.int for each in directory.known.subscriptions] == [1, 2]


async def test_an_applied_event_of_a_later_release_waits(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is not left out: the partition stops at it by name, and what comes before it is dispatched."""
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, [named(1), named(2)])
    registered = codec.registered

    def of_an_older_release(value: bytes | None, topic: str | None = None) -> object:
        if value == codec.encode(named(2)):
            value = codec.WIRE_PREFIX.pack(0, 99)
        return registered(value, topic)

    monkeypatch.setattr(codec, "registered", of_an_older_release)
    monkeypatch.setattr(partition_dispatcher, "PART_RECORDS_MAX", 1)
    monkeypatch.setattr(partition_dispatcher, "FEW_RECORDS", 1)
    with pytest.raises(SchemaNewer, match="schema id 99"):
        dispatch_all(dispatcher, [named(1), named(2)], itertools.repeat(5))
    assert [each.event_id for each in sent.queued] == [named(1).event_id]
    assert dispatcher.acquire(WATERMARKS).log_end.next_offset == 1


async def test_a_stop_is_noted_where_operators_find_it(
    dispatcher: PartitionDispatcher, projector: PartitionProjector, database: Database
) -> None:
    """Apart from that of the log's owner, until the partition is acquired again."""
    projector.acquire(WATERMARKS)
    dispatcher.acquire(WATERMARKS)
    dispatcher.note_stop("SchemaNewer: a test")
    session = Session(database.superuser_url)
    query = "SELECT consumer, stop_reason FROM partition_owners WHERE partition = 0 ORDER BY consumer"
    assert session.query(query) == [("dispatcher", "SchemaNewer: a test"), ("projector", None)]
    dispatcher.acquire(WATERMARKS)
    assert session.query(query) == [("dispatcher", None), ("projector", None)]
    session.close()


async def test_a_stop_while_acquiring_is_noted_whoever_had_the_partition_last(
    make_dispatcher: Callable[[], PartitionDispatcher], database: Database
) -> None:
    """The token of an earlier ownership would say that it is another dispatcher's partition."""
    first, second = make_dispatcher(), make_dispatcher()
    first.acquire(WATERMARKS)
    second.acquire(WATERMARKS)
    with pytest.raises(TopicRecreated) as stopped:
        first.acquire(WATERMARKS._replace(leadership=Leadership(uuid4(), 0)))
    first.note_stop(f"TopicRecreated: {stopped.value}")
    query = "SELECT stop_reason FROM partition_owners WHERE partition = 0 AND consumer = 'dispatcher'"
    with contextlib.closing(Session(database.superuser_url)) as session:
        assert str(session.query(query)[0][0]).startswith("TopicRecreated")


async def test_a_filter_that_can_not_be_read_costs_its_endpoint_alone(
    settings: Settings, database: Database, directory: EndpointDirectory, know: Know,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is named in the log; the others are known."""
    session = Session(database.superuser_url)
    await know(1)
    session.script("ALTER TABLE endpoints DISABLE TRIGGER keep_rows")
    session.execute(
        "UPDATE endpoints SET event_types = '{no.such.type}' WHERE id = $1::text::uuid", (str(UUID(int=1)),)
    )
    session.close()
    other = EndpointDirectory(settings)
    await add_endpoint(settings, 2)
    try:
        await other.start()
        assert [each.int for each in other.known.active] == [2]
    finally:
        await other.stop()
    assert "endpoint.unusable" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(4))
async def test_an_endpoint_that_is_heard_of_late_gets_all_from_its_start_on(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know, seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What takes effect before its live events comes by itself, in order, with the same bytes; wherever the slices
    end, and whatever Kafka refuses.
    """
    chance = random.Random(seed)
    made = MixedEvents(seed)
    stream = ParkedStream(0, chance, lambda: made.take(1)[0])
    records = [stream.take() for _ in range(120)]
    monkeypatch.setattr(backfill_reader, "SLICE_EVENTS_MAX", chance.randrange(1, 15))
    monkeypatch.setattr(partition_sender, "SLICE_RECORDS_MAX", chance.randrange(1, 9))
    await know(2)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records[:100])
    dispatch_all(dispatcher, records[:100], itertools.repeat(20))
    start = chance.randrange(60)
    await know(1, starts=(start,))
    sent.refused = {sent.slices + chance.randrange(1, 9) for _ in range(3)}
    apply(projector, records[100:], 100)

    for _ in range(len(sent.refused) + 1):
        with contextlib.suppress(KafkaUnavailable):
            dispatch_all(dispatcher, records, itertools.repeat(20))
            feed_all(dispatcher)
    backfilled = in_order([each for each in sent.queued if each.stream == "backfill"])
    live = in_order([each for each in sent.queued if each.stream == "live"])
    assert {each.endpoint_id.int for each in backfilled} == {1}
    of_the_first = {each.event_id for each in live if each.endpoint_id.int == 1}
    since = [each for each in live if each.endpoint_id.int == 2 and each.source_offset >= start]
    assert [each.event_id for each in since] == [
        each.event_id for each in [*backfilled, *(each for each in live if each.endpoint_id.int == 1)]
    ]
    assert not of_the_first & {each.event_id for each in backfilled}
    assert [each.data for each in since[: len(backfilled)]] == [each.data for each in backfilled]
    assert [each.event_id for each in live if each.endpoint_id.int == 2] == [
        each.event.event_id for each in stream.applied
    ]


async def test_endpoints_take_turns_and_are_fed_once(
    make_dispatcher: Callable[[], PartitionDispatcher], sent: SentDeliveries, projector: PartitionProjector, know: Know,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A slice each; the next owner goes on where the last one was, and feeds nothing again."""
    monkeypatch.setattr(backfill_reader, "SLICE_EVENTS_MAX", 2)
    apply(projector, [named(number) for number in range(6)])
    await know(1, 2)
    first, second = make_dispatcher(), make_dispatcher()
    monkeypatch.setattr(partition_dispatcher, "IDLE_FEED_SECONDS", 0.0)
    first.acquire(WATERMARKS)
    first.idle()
    assert first._feed_backfill()
    assert first._feed_backfill()
    assert first._feed_backfill()
    monkeypatch.setattr(partition_dispatcher, "IDLE_FEED_SECONDS", 60.0)
    second.acquire(WATERMARKS)
    second.idle()
    second.acquire(WATERMARKS)
    second.idle()
    found = [(each.endpoint_id.int, each.source_offset) for each in sent.queued]
    assert found == [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 2), (2, 3), (2, 4), (2, 5)]
    assert {each.stream for each in sent.queued} == {"backfill"}


async def test_a_backfill_waits_while_its_endpoint_is_paused(
    dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know,
    settings: Settings, directory: EndpointDirectory,
) -> None:  # fmt: skip
    """And goes on when it is resumed."""
    apply(projector, [named(1), named(2)])
    await know(1)
    (endpoint_id,) = directory.known.active
    await change_endpoint(settings, endpoint_id, "pause")
    await wait_until_async(lambda: not directory.known.active, "the directory has the state")
    dispatcher.acquire(WATERMARKS)
    feed_all(dispatcher)
    assert sent.records == []
    await change_endpoint(settings, endpoint_id, "resume")
    await wait_until_async(lambda: directory.known.active, "the directory has the state")
    feed_all(dispatcher)
    assert [each.event_id for each in sent.queued] == [named(1).event_id, named(2).event_id]


def feed_all(dispatcher: PartitionDispatcher) -> None:
    """Let a dispatcher without live events feed what is owed."""
    dispatcher.idle()
    while dispatcher._feed_backfill():
        pass


@pytest.mark.parametrize("seed", range(3))
async def test_a_redrive_sends_the_same_again_in_the_same_order(
    settings: Settings, database: Database, make_dispatcher: Callable[[], PartitionDispatcher], sent: SentDeliveries,
    projector: PartitionProjector, know: Know, seed: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Parked and repaired events too; whatever slices Kafka refuses and whoever goes on, what is new comes in order."""
    chance = random.Random(seed)
    made = MixedEvents(seed)
    stream = ParkedStream(0, chance, lambda: made.take(1)[0])
    records = [stream.take() for _ in range(60)]
    await know(1, 2)
    dispatcher = make_dispatcher()
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    apply(projector, records)
    dispatch_all(dispatcher, records, itertools.repeat(25))
    live = sent.first_occurrences
    record(database, *[dead_letter_of(each) for each in live])
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=100_000), RedriveSelection())
        sent.records.clear()
        monkeypatch.setattr(redrive_reader, "SLICE_SLOTS_MAX", chance.randrange(1, 9))
        sent.refused = {sent.slices + chance.randrange(1, 20) for _ in range(5)}
        while (found := await redrives.find(number)).state == "running":
            dispatcher = make_dispatcher()
            dispatcher.acquire(WATERMARKS)
            with contextlib.suppress(KafkaUnavailable):
                dispatcher.idle()
    assert (found.deliveries, found.queued, found.unfound) == (len(live), len(live), 0)
    assert len(sent.records) >= len(live)
    again = [msgspec.structs.replace(each, stream="live", hop=0, token=0) for each in sent.first_occurrences]
    assert again == [msgspec.structs.replace(each, token=0) for each in live]
    assert {(each.stream, each.hop, each.attempt) for each in sent.queued} == {("redrive", first_hop(number), 1)}


def dead_letter_of(queued: DeliveryQueued) -> DeliveryAttempted:
    """Return the record of a delivery's last attempt, which failed."""
    names = ("event_id", "delivery_id", "type", "occurred_at", "entity_id", "source_partition", "source_offset")
    own = {name: getattr(queued, name) for name in (*names, "source_rank")}
    return attempted(endpoint_id=queued.endpoint_id, outcome="failed", state="dead", attempt=6, hop=5, **own)
