"""The redrives of a partition: how fast slots are sent, which of a stopped order, and what the log does not have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from uuid import UUID

import pytest
import pytest_asyncio

from deliveries.dispatch import redrive_reader
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from deliveries.dispatch.redrive_reader import RedriveReader
from deliveries.redrive.selection import RedriveSelection
from devstack import sql
from projections.engine import PartitionProjector
from runtime.settings import Settings
from schemas.delivery_records import DeliveryAttempted, DeliveryQueued
from streams.errors import KafkaUnavailable
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS
from tests.support.made_attempts import attempted
from tests.support.partition_dispatching import Know, SentDeliveries, apply, dispatch_all, named
from tests.support.recorded_attempts import record
from tests.support.redriving import open_redrives, redrive_order

EVENTS = 20


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def dead_letter_of(queued: DeliveryQueued, event_id: UUID | None = None) -> DeliveryAttempted:
    """Return the record of a delivery's last attempt, which failed."""
    return attempted(
        endpoint_id=queued.endpoint_id, outcome="failed", state="dead", attempt=6, hop=5, type=queued.type,
        event_id=event_id or queued.event_id, delivery_id=queued.delivery_id, occurred_at=queued.occurred_at,
        entity_id=queued.entity_id, source_partition=queued.source_partition, source_offset=queued.source_offset,
        source_rank=queued.source_rank,
    )  # fmt: skip


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
    dispatcher._redrives = RedriveReader(TOPIC, 0, "deliveries", clock)
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
