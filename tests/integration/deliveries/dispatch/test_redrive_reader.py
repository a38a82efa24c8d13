"""The redrives of a partition: how fast slots are sent, which of a stopped order, and what the log does not have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio

from deliveries.dispatch import partition_dispatcher, partition_sender, redrive_reader
from deliveries.dispatch.delivery_sender import EndOffsets
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from deliveries.dispatch.queued_deliveries import DeliveryRecord
from deliveries.dispatch.redrive_reader import RedriveReader
from deliveries.hops import redrive_of
from deliveries.redrive.selection import RedriveSelection
from devstack import sql
from projections.effective_events import EffectiveEvent
from projections.engine import PartitionProjector
from projections.session import Session
from runtime.settings import Settings
from schemas.delivery_records import DeliveryAttempted, DeliveryQueued
from schemas.events import Event
from streams.errors import AppliedEventUnreadable, KafkaUnavailable, SchemaNewer
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS
from tests.support.made_attempts import attempted
from tests.support.partition_dispatching import Know, SentDeliveries, apply, dispatch_all, named
from tests.support.recorded_attempts import record
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import DEADLINE_SECONDS, wait_until

EVENTS = 20


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine ends no turn early: what is sent in one is bounded by rates alone."""
    monkeypatch.setattr(partition_dispatcher, "IDLE_FEED_SECONDS", 60.0)


def dead_letter_of(queued: DeliveryQueued, event_id: UUID | None = None, partition: int = 0) -> DeliveryAttempted:
    """Return the record of a delivery's last attempt, which failed."""
    return attempted(
        endpoint_id=queued.endpoint_id, outcome="failed", state="dead", attempt=6, hop=5, type=queued.type,
        event_id=event_id or queued.event_id, delivery_id=queued.delivery_id, occurred_at=queued.occurred_at,
        entity_id=queued.entity_id, source_partition=partition, source_offset=queued.source_offset,
        source_rank=queued.source_rank,
    )  # fmt: skip


def others(dead: list[DeliveryQueued], partition: int) -> list[DeliveryAttempted]:
    """Return dead letters of other events, which the log of another partition does not have."""
    return [
        dead_letter_of(msgspec.structs.replace(each, delivery_id=UUID(int=each.source_offset)), UUID(int=7), partition)
        for each in dead
    ]


@pytest_asyncio.fixture
async def dead(
    database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries, projector: PartitionProjector, know: Know
) -> list[DeliveryQueued]:
    """Deliveries of an endpoint that were sent, none of which is sent again yet."""
    await know(1)
    dispatcher.acquire(WATERMARKS)
    dispatcher.idle()
    events = [named(number) for number in range(EVENTS)]
    apply(projector, events)
    dispatch_all(dispatcher, events, itertools.repeat(EVENTS))
    made, sent.records = sent.queued, []
    return made


def with_clock(dispatcher: PartitionDispatcher) -> Clock:
    """Let a dispatcher's redrives go by a clock, from an acquisition on."""
    clock = Clock()
    dispatcher._redrives = RedriveReader(TOPIC, dispatcher.partition, "deliveries", clock)
    dispatcher.acquire(WATERMARKS)
    return clock


async def test_an_order_keeps_to_its_rate(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued],
) -> None:  # fmt: skip
    """What was sent counts, and no more is saved than what a second lets pass."""
    record(database, *[dead_letter_of(each) for each in dead])
    clock = with_clock(dispatcher)
    async with open_redrives(settings) as redrives:
        await redrives.order(redrive_order(rate_per_second=5), RedriveSelection())
    came = []
    for seconds in (0, 0, 1, 0, 3, 0):
        clock.now += seconds
        dispatcher.idle()
        came.append(len(sent.records))
    assert came == [1, 1, 6, 6, 11, 11]


async def test_nothing_more_is_sent_of_an_order_that_was_stopped(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued],
) -> None:  # fmt: skip
    """Although its owner has not looked for orders since."""
    record(database, *[dead_letter_of(each) for each in dead])
    clock = with_clock(dispatcher)
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=5), RedriveSelection())
        dispatcher.idle()
        assert await redrives.stop(number)
        clock.now += redrive_reader.POLL_SECONDS / 2
        dispatcher.idle()
        stopped = await redrives.find(number)
    assert (len(sent.records), stopped.queued, stopped.state) == (1, 1, "stopped")


async def test_what_was_claimed_of_a_stopped_order_is_sent_again(
    settings: Settings, database: Database, make_dispatcher: Callable[[], PartitionDispatcher], sent: SentDeliveries,
    dead: list[DeliveryQueued],
) -> None:  # fmt: skip
    """Some of it may be on Kafka already, so the next owner sends all of it, and nothing else."""
    record(database, *[dead_letter_of(each) for each in dead])
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=100_000), RedriveSelection())
        first = make_dispatcher()
        with_clock(first).now += 10
        sent.refused = {sent.slices + 1}
        with pytest.raises(KafkaUnavailable):
            first.idle()
        claimed = "SELECT claimed - done FROM redrive_partitions"
        left = sql.value(database.superuser_url, claimed)
        assert left
        assert await redrives.stop(number)
        sent.records.clear()
        second = make_dispatcher()
        second.acquire(WATERMARKS)
        second.idle()
        stopped = await redrives.find(number)
    assert (len(sent.records), stopped.queued, sql.value(database.superuser_url, claimed)) == (left, left, 0)


async def test_a_delivery_whose_event_is_another_one_in_the_log_is_not_sent(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued],
) -> None:  # fmt: skip
    """It is counted, and the others are sent."""
    letters = [dead_letter_of(each) for each in dead]
    record(database, dead_letter_of(dead[0], UUID(int=7)), *letters[1:])
    clock = with_clock(dispatcher)
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=100_000), RedriveSelection())
        for _ in range(3):
            dispatcher.idle()
            clock.now += 2
        found = await redrives.find(number)
    assert (found.state, found.deliveries, found.queued, found.unfound) == ("finished", EVENTS, EVENTS - 1, 1)
    assert [each.event_id for each in sent.queued] == [each.event_id for each in dead[1:]]


async def test_an_order_ends_with_the_last_of_its_partitions(
    settings: Settings, database: Database, make_dispatcher: Callable[..., PartitionDispatcher], sent: SentDeliveries,
    dead: list[DeliveryQueued],
) -> None:  # fmt: skip
    """Not with the first one that comes to its end; also where the log has nothing of the last one's."""
    record(database, *[dead_letter_of(each) for each in dead], *others(dead[:3], 1))
    first, second = make_dispatcher(0), make_dispatcher(1)
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=100_000), RedriveSelection())
        found = []
        for each in (first, second):
            clock = with_clock(each)
            for _ in range(3):
                each.idle()
                clock.now += 2
            found.append(await redrives.find(number))
        one, both = found
    assert (one.state, one.queued, one.unfound) == ("running", EVENTS, 0)
    assert (both.state, both.queued, both.unfound) == ("finished", EVENTS, 3)
    assert [each.event_id for each in sent.queued] == [each.event_id for each in dead]


async def test_partitions_that_come_to_their_end_at_once_end_their_order(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One after the other: neither takes the other for one that has slots left, and leaves the end to it."""
    record(database, *[dead_letter_of(each) for each in dead[:1]], *others(dead[:3], 1))
    ending = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    send = sent.send
    async with open_redrives(settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=100_000), RedriveSelection())
        with closing(Session(database.superuser_url)) as other, ThreadPoolExecutor(1) as thread:

            def as_the_other_ends(records: Sequence[DeliveryRecord]) -> Future[EndOffsets]:
                other.script(
                    "BEGIN", "SET LOCAL idle_in_transaction_session_timeout = 0",
                    f"SELECT FROM redrives WHERE number = {number} FOR UPDATE",
                    "UPDATE redrive_partitions SET claimed = slots, done = slots WHERE source_partition = 1",
                )  # fmt: skip
                return send(records)

            monkeypatch.setattr(sent, "send", as_the_other_ends)
            with_clock(dispatcher)
            idle = thread.submit(dispatcher.idle)
            wait_until(lambda: idle.done() or sql.value(database.superuser_url, ending), "it ends, or waits")
            other.commit()
            idle.result(DEADLINE_SECONDS)
        assert len(sent.records) == 1
        assert (await redrives.find(number)).state == "finished"


async def test_an_order_waits_for_deliverers(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While more records than a bound are before them, in any partition that it has sent to, by their own offsets."""
    record(database, *[dead_letter_of(each) for each in dead])
    monkeypatch.setattr(redrive_reader, "SLICE_SLOTS_MAX", 5)
    monkeypatch.setattr(redrive_reader, "BACKLOG_RECORDS_MAX", 4)
    send = sent.send

    def with_ends(records: Sequence[DeliveryRecord]) -> Future[EndOffsets]:
        answer: Future[EndOffsets] = Future()
        send(records).result()
        answer.set_result({0: len(sent.records), 2: 3})
        return answer

    monkeypatch.setattr(sent, "send", with_ends)
    passed = """
    INSERT INTO delivery_checkpoints (consumer, topic, partition, partitions, topic_id, next_offset, read_to)
    VALUES ('{}', '{}', {}, 4, gen_random_uuid(), {}, {}) ON CONFLICT (consumer, topic, partition) DO UPDATE
    SET next_offset = excluded.next_offset, read_to = excluded.read_to
    """
    elsewhere = [("recorder", "deliveries", 0), ("deliverer", "deliveries.retry.1s", 0), ("deliverer", "deliveries", 1)]
    sql.execute(database.superuser_url, [passed.format(*each, 99, 99) for each in elsewhere])
    clock = with_clock(dispatcher)
    clock.now += 10
    came = []
    async with open_redrives(settings) as redrives:
        await redrives.order(redrive_order(rate_per_second=100_000), RedriveSelection())
        for done in (0, 0, 1, 2, 6, 7):
            sql.execute(database.superuser_url, [passed.format("deliverer", "deliveries", 0, done, done)])
            clock.now += 10
            dispatcher.idle()
            came.append(len(sent.records))
    assert came == [1, 6, 6, 11, 11, 16]


async def test_orders_take_turns(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A slice each: a small order does not wait for the end of a large one that was given before."""
    record(database, *[dead_letter_of(each) for each in dead])
    monkeypatch.setattr(redrive_reader, "SLICE_SLOTS_MAX", 4)
    clock = with_clock(dispatcher)
    async with open_redrives(settings) as redrives:
        for some in (dead[:12], dead[12:]):
            selection = RedriveSelection(delivery_ids=tuple(each.delivery_id for each in some))
            await redrives.order(redrive_order(rate_per_second=100_000), selection)
        for _ in range(5):
            clock.now += 2
            dispatcher._feed()
    assert [redrive_of(each.hop) for each in sent.queued] == [1] + [2] * 4 + [1] * 4 + [2] * 4 + [1] * 4


async def test_a_partition_keeps_to_its_share_of_a_rate(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued],
) -> None:  # fmt: skip
    """A quarter of an order's deliveries is sent at a quarter of its rate."""
    letters = [each for partition in (1, 2, 3) for each in others(dead, partition)]
    letters = [
        msgspec.structs.replace(each, delivery_id=UUID(int=index), event_id=UUID(int=index))
        for index, each in enumerate(letters)
    ]
    record(database, *[dead_letter_of(each) for each in dead], *letters)
    clock = with_clock(dispatcher)
    came = []
    async with open_redrives(settings) as redrives:
        await redrives.order(redrive_order(rate_per_second=12), RedriveSelection())
        for _ in range(3):
            dispatcher.idle()
            came.append(len(sent.records))
            clock.now += 1
    assert came == [1, 4, 7]


@pytest.mark.parametrize("newer", [True, False])
async def test_an_event_that_can_not_be_read_holds_up_no_other_order(
    settings: Settings, database: Database, dispatcher: PartitionDispatcher, sent: SentDeliveries,
    dead: list[DeliveryQueued], monkeypatch: pytest.MonkeyPatch, newer: bool,
) -> None:  # fmt: skip
    """One of a later release waits for a dispatcher that knows it, with its order; one of none is counted."""
    record(database, *[dead_letter_of(each) for each in dead])
    decode = partition_sender.decode_effective

    def unreadable(topic: str, partition: int, effective: EffectiveEvent) -> Event:
        if effective.effective_offset == 1:
            if newer:
                raise SchemaNewer(topic, partition, 1, 99)
            raise AppliedEventUnreadable(topic, partition, 1, "a test")
        return decode(topic, partition, effective)

    async with open_redrives(settings) as redrives:
        numbers = []
        for some in (dead[:10], dead[10:]):
            selection = RedriveSelection(delivery_ids=tuple(each.delivery_id for each in some))
            numbers.append(await redrives.order(redrive_order(rate_per_second=100_000), selection))
        with monkeypatch.context() as patched:
            patched.setattr(partition_sender, "decode_effective", unreadable)
            clock = with_clock(dispatcher)
            for _ in range(6):
                clock.now += 2
                dispatcher.idle()
            first, second = [await redrives.find(number) for number in numbers]
        assert (second.state, second.queued) == ("finished", 10)
        if not newer:
            assert (first.state, first.queued, first.unfound) == ("finished", 9, 1)
            return
        assert (first.state, first.queued, first.unfound) == ("running", 1, 0)
        clock = with_clock(dispatcher)
        for _ in range(6):
            clock.now += 2
            dispatcher.idle()
        assert (await redrives.find(numbers[0])).state == "finished"
    assert {each.event_id for each in sent.queued} == {each.event_id for each in dead}
