"""A run takes what follows on what it has read, and ends as a whole."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

from database.errors import DatabaseUnreachable
from deliveries.deliverer import partition_intake, partition_run
from deliveries.deliverer.endpoint_streaks import EndpointStreaks
from deliveries.deliverer.partition_run import PartitionRun
from deliveries.deliverer.recorded_attempts import RecordedAttempts
from deliveries.deliverer.round_writer import DeliveryRound, RoundAnswer, RoundWriter
from deliveries.delivery_fence import TopicOffsets
from deliveries.schedule import Delivered
from schemas.delivery_records import DELIVERIES_TOPIC
from streams.errors import OwnershipLost
from tests.support.partition_parts import (
    NOW,
    TOKEN,
    PartitionParts,
    SeenWriter,
    batch_at,
    queues_of,
    read_delivery,
)
from tests.support.waiting import wait_until_async


@asynccontextmanager
async def running(parts: PartitionParts, writer: SeenWriter | None = None) -> AsyncIterator[PartitionRun]:
    run = PartitionRun(
        parts.process, 0, cast(RoundWriter, writer or SeenWriter()), {}, set(), EndpointStreaks(None, {}),
        RecordedAttempts({}, 0, NOW),
    )  # fmt: skip
    run.open_topic(DELIVERIES_TOPIC, TopicOffsets(5))
    try:
        yield run
    finally:
        await run.close()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> PartitionParts:
    """Each record of a batch is a delivery."""

    def read(_values: object, topic: str, _partition: int, offsets: list[int]) -> Any:
        return [read_delivery(offset, topic=topic) for offset in offsets], []

    monkeypatch.setattr(partition_intake, "read_deliveries", read)
    monkeypatch.setattr(partition_run, "READ_RECORDS", 2)
    return PartitionParts(monkeypatch, unfinished_max=3)


def begun(run: PartitionRun) -> list[int]:
    return [each.offset for each in queues_of(run.queues).enqueued]


async def test_a_batch_is_read_a_few_records_at_a_time(parts: PartitionParts) -> None:
    """All of them, each once, also where a part of them was read before."""
    async with running(parts) as run:
        accepting = asyncio.create_task(run.accept(DELIVERIES_TOPIC, batch_at(5, 6, 7, 8, 9)))
        await wait_until_async(lambda: begun(run) == [5, 6, 7, 8], "deliveries begin")
        assert not accepting.done()
        for offset in (5, 6):
            run._intake.finish(read_delivery(offset))
        run._intake.look_for_room()
        assert await accepting == 10
        assert begun(run) == [5, 6, 7, 8, 9]
        assert await run.accept(DELIVERIES_TOPIC, batch_at(5, 6, 7, 8, 9)) == 10
        assert begun(run) == [5, 6, 7, 8, 9]
        assert await run.accept(DELIVERIES_TOPIC, batch_at(start=10)) == 10


async def test_a_batch_of_another_token_or_behind_a_hole_is_refused(parts: PartitionParts) -> None:
    """So is one of a topic that has no part in the run; one that was read already is none."""
    async with running(parts) as run:
        for topic, batch in (
            (DELIVERIES_TOPIC, batch_at(5, token=TOKEN - 1)),
            (DELIVERIES_TOPIC, batch_at(6)),
            (DELIVERIES_TOPIC, batch_at(5, start=4)),
            ("another", batch_at(5)),
        ):
            with pytest.raises(OwnershipLost):
                await run.accept(topic, batch)
        assert await run.accept(DELIVERIES_TOPIC, batch_at(3, 4)) == 5
        assert begun(run) == []


async def test_an_empty_batch_moves_over_a_gap(parts: PartitionParts) -> None:
    """And its offset is written down."""
    async with running(parts) as run:
        batch = batch_at(5).between(0, 0)
        gap = type(batch)(**{**{name: getattr(batch, name) for name in batch.__slots__}, "next_offset": 9})
        assert await run.accept(DELIVERIES_TOPIC, gap) == 9
        assert run.trackers[DELIVERIES_TOPIC].position == 9


class FailingWriter(SeenWriter):
    """A writer whose database is away."""

    async def write(self, work: DeliveryRound) -> RoundAnswer:
        raise DatabaseUnreachable(why="a test")


async def test_a_round_that_fails_ends_the_run(parts: PartitionParts) -> None:
    """No attempt begins, who waits for room is told, and why it ended."""
    async with running(parts, FailingWriter()) as run:
        accepting = asyncio.create_task(run.accept(DELIVERIES_TOPIC, batch_at(5, 6, 7, 8, 9)))
        with pytest.raises(OwnershipLost, match="a test"):
            await accepting
        assert isinstance(run.failure, DatabaseUnreachable)
        assert queues_of(run.queues).stopped
        with pytest.raises(OwnershipLost):
            run.check()


async def test_a_run_that_is_given_up_takes_nothing(parts: PartitionParts) -> None:
    """Who waits for room is told."""
    async with running(parts) as run:
        accepting = asyncio.create_task(run.accept(DELIVERIES_TOPIC, batch_at(5, 6, 7, 8, 9)))
        await wait_until_async(lambda: begun(run) == [5, 6, 7, 8], "deliveries begin")
        await run.close()
        with pytest.raises(OwnershipLost):
            await accepting
        assert queues_of(run.queues).stopped
        assert all(task.done() for task in run._background)


async def test_a_run_that_is_given_up_at_once_leaves_nothing_behind(parts: PartitionParts) -> None:
    """Its partition can be lost in the turn of the loop in which it began: no work is made that is never done."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with running(parts) as run:
            run.check()
        del run
        gc.collect()
    assert [str(each.message) for each in warned] == []


async def test_a_drain_writes_down_what_ended(parts: PartitionParts) -> None:
    """It returns after that, and begins nothing."""
    writer = SeenWriter()
    async with running(parts, writer) as run:
        await run.accept(DELIVERIES_TOPIC, batch_at(5))
        queues_of(run.queues).on_end(parts.end(read_delivery(5), Delivered()))
        await run.drain()
        assert queues_of(run.queues).stopped
        assert [each.delivery.offset for work in writer.rounds for each in work.ended] == [5]


async def test_a_delivery_of_a_retry_topic_goes_when_it_is_due(parts: PartitionParts) -> None:
    """Also one that comes while another is waited for; slow attempts are looked for meanwhile."""
    async with running(parts) as run:
        for offset, seconds in ((5, 60), (6, 0)):
            due_at = NOW + timedelta(seconds=seconds)
            run._deliveries.begin_at_due_time(read_delivery(offset, due_at=due_at))
            assert run.waiting == 1 if seconds else run.waiting == 2
        await wait_until_async(lambda: begun(run) == [6], "deliveries begin")
        parts.clock.set(NOW + timedelta(seconds=60))
        await wait_until_async(lambda: begun(run) == [6, 5], "deliveries begin")
        assert parts.swept
