"""An owned partition: its queue's bounds, and the watermarks that its checkpoint has to fit."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

import pytest
from faust.types import TP

from streams import ownership
from streams.batch import EventBatch
from streams.errors import CheckpointOutOfLog
from streams.open_partition import OpenPartition
from streams.ownership import Acquired, OwnedPartition
from streams.transport import RecordBatchConsumer
from streams.watermarks import Watermarks
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

TOPIC = TP("genesis.events", 0)
TOPIC_ID = UUID(int=7)


class Consumer:
    """The consumer's side of one partition, whose high watermarks are answered one after the other."""

    def __init__(self, *high: int) -> None:
        self.done: dict[TP, int] = {}
        self.opened: list[OpenPartition] = []
        self.asked = 0
        self._high = high

    async def watermarks(self, _tp: TP) -> Watermarks:
        high = self._high[min(self.asked, len(self._high) - 1)]
        self.asked += 1
        return Watermarks(0, high, 1, TOPIC_ID)

    async def open_partition(self, tp: TP, token: int, position: int, topic_id: UUID | None) -> OpenPartition:
        self.opened.append(OpenPartition(token, position, None, topic_id))
        self.done[tp] = position
        return self.opened[-1]

    def close_partition(self, tp: TP) -> None:
        self.done.pop(tp, None)


class Writer:
    """Postgres's side, which projects a batch when `allowed` is set."""

    def __init__(self, next_offset: int = 0) -> None:
        self.allowed = threading.Event()
        self.projecting = threading.Event()
        self._next_offset = next_offset
        self.stop_reasons: list[str] = []

    def acquire(self, _watermarks: Watermarks) -> Acquired:
        return Acquired(1, self._next_offset)

    def project(self, batch: EventBatch) -> int:
        self.projecting.set()
        assert self.allowed.wait(DEADLINE_SECONDS)
        return batch.next_offset

    def note_stop(self, reason: str) -> None:
        self.stop_reasons.append(reason)

    def close(self) -> None:
        self.allowed.set()


@asynccontextmanager
async def owned(consumer: Consumer, writer: Writer) -> AsyncIterator[OwnedPartition]:
    partition = OwnedPartition(TOPIC, writer, cast(RecordBatchConsumer, consumer), heartbeat_seconds=0.01)
    partition.assign()
    try:
        yield partition
    finally:
        writer.allowed.set()
        await partition.shut_down()


def batch(start: int, *sizes: int) -> EventBatch:
    """Records with values of these sizes."""
    stop = start + len(sizes)
    return EventBatch(
        topic=TOPIC.topic,
        partition=TOPIC.partition,
        token=1,
        fetched_from=start,
        next_offset=stop,
        offsets=list(range(start, stop)),
        timestamps_ms=[0] * len(sizes),
        keys=[None] * len(sizes),
        values=[b"x" * size for size in sizes],
        headers=[()] * len(sizes),
    )


@pytest.mark.parametrize(
    ("bound", "sizes"),
    [("QUEUED_BYTES_MAX", (600, 400)), ("QUEUED_RECORDS_MAX", (0,) * 1_000)],
    ids=["bytes", "records"],
)
async def test_a_full_queue_pauses_its_partition(
    monkeypatch: pytest.MonkeyPatch, bound: str, sizes: tuple[int, ...]
) -> None:
    """Few large records fill it as many small ones do; it is fetched again once the queue has been taken over."""
    monkeypatch.setattr(ownership, bound, 1_000)
    consumer, writer = Consumer(10_000), Writer()
    async with owned(consumer, writer) as partition:
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
        partition.submit(batch(0, 1))
        await wait_until_async(writer.projecting.is_set, "the first batch is being projected")

        partition.submit(batch(1, *sizes[:-1]))
        assert not consumer.opened[0].paused
        partition.submit(batch(len(sizes), sizes[-1]))
        assert consumer.opened[0].paused

        writer.allowed.set()
        await wait_until_async(lambda: consumer.done[TOPIC] == len(sizes) + 1, "every record is done")
        assert not consumer.opened[0].paused


async def test_watermarks_are_asked_for_again_before_a_checkpoint_is_out_of_the_log() -> None:
    """A former owner may have gone on past the high watermark of the first answer; then the second one counts."""
    consumer = Consumer(10, 20)
    async with owned(consumer, Writer(next_offset=15)) as partition:
        await wait_until_async(lambda: consumer.opened or partition.stopped, "the partition is opened or stops")
        assert partition.stopped is None
        assert [opened.position for opened in consumer.opened] == [15]
    assert consumer.asked == 2


async def test_a_checkpoint_that_both_answers_exclude_stops_the_partition() -> None:
    """It is never opened elsewhere."""
    consumer = Consumer(10, 14)
    async with owned(consumer, Writer(next_offset=15)) as partition:
        await wait_until_async(lambda: consumer.opened or partition.stopped, "the partition is opened or stops")
        assert isinstance(partition.stopped, CheckpointOutOfLog)
        assert consumer.opened == []


async def test_a_checkpoint_within_the_log_needs_one_answer() -> None:
    """At the high watermark, too, where the next record will be."""
    consumer = Consumer(15)
    async with owned(consumer, Writer(next_offset=15)):
        await wait_until_async(lambda: consumer.opened, "the partition is opened")
    assert consumer.asked == 1


async def test_why_a_partition_is_stopped_is_written_down() -> None:
    """Those who look from outside find the error's name and what it says."""
    writer = Writer(next_offset=15)
    async with owned(Consumer(10, 14), writer) as partition:
        await wait_until_async(lambda: writer.stop_reasons, "the reason is written down")
        assert writer.stop_reasons == [f"CheckpointOutOfLog: {partition.stopped}"]
