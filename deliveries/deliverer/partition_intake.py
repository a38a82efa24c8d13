"""Records of a partition's topics, as they are read: which deliveries they begin, which are copies, what is done.

Records of retry topics, and redriven deliveries, are compared with the rows at the beginning of a round, since every
row of a record that was read by then is written: rounds come one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from deliveries.deliverer.delivery import Delivery, read_deliveries
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.offset_tracker import OffsetTracker
from deliveries.deliverer.partition_deliveries import PartitionDeliveries
from deliveries.deliverer.source_marks import SourceMarks
from deliveries.delivery_fence import TopicOffsets
from runtime import metrics
from schemas.batch_decoder import RejectedValue
from schemas.errors import UnknownSchema
from streams.batch import EventBatch
from streams.errors import LogTruncated, SchemaNewer
from streams.log_end import record_of


class LoadedRecords(NamedTuple):
    """The records of a batch: deliveries, and what can't be read."""

    deliveries: Sequence[Delivery]
    rejected: Sequence[RejectedValue]


class PartitionIntake:
    """What was read of a partition's topics, until it is done."""

    def __init__(
        self, process: DeliveryProcess, partition: int, marks: SourceMarks, deliveries: PartitionDeliveries, log: Any
    ) -> None:
        self.trackers: Final[dict[str, OffsetTracker]] = {}
        """How far each topic is done."""
        self.marks: Final = marks
        self._process = process
        self._partition = partition
        self._deliveries = deliveries
        self._unverified: list[Delivery] = []
        self._changed: set[str] = set()
        self._room = asyncio.Event()
        self._log = log

    def open_topic(self, topic: str, offsets: TopicOffsets) -> None:
        """Take records of a topic from its checkpoint on."""
        self.trackers[topic] = OffsetTracker(offsets)

    async def wait_for_room(self, tracker: OffsetTracker) -> bool:
        """Return whether a topic has room for more records; where it has none, once that may have changed."""
        if tracker.unfinished < self._process.limits.unfinished_max:
            return True
        self._room.clear()
        await self._room.wait()
        return False

    def look_for_room(self) -> None:
        """Let those look again who wait for room."""
        self._room.set()

    async def load(self, topic: str, batch: EventBatch) -> LoadedRecords:
        """Return what a batch holds, once the endpoints of its deliveries are known. Raises SchemaNewer."""
        try:
            deliveries, rejected = read_deliveries(batch.values, topic, self._partition, batch.offsets)
        except UnknownSchema as error:
            raise SchemaNewer(topic, self._partition, batch.offsets[error.row or 0], error.schema_id) from error
        await self._process.endpoints.load({each.endpoint_id for each in deliveries})
        return LoadedRecords(deliveries, rejected)

    def take(self, topic: str, batch: EventBatch, loaded: LoadedRecords) -> None:
        """Take what was loaded of a batch. Raises LogTruncated where Kafka holds other records than before."""
        tracker = self.trackers[topic]
        self._compare(topic, tracker, batch)
        fresh = set(tracker.read(batch.next_offset, batch.offsets))
        self._changed.add(topic)
        for value in loaded.rejected:
            if (offset := batch.offsets[value.row]) in fresh:
                self._log.error("delivery.unreadable", topic=topic, offset=offset, why=value.reason)
                tracker.finish(offset)
        for delivery in sorted(loaded.deliveries, key=lambda each: each.offset):
            if delivery.offset in fresh:
                self._sort_in(topic, tracker, delivery)
        self._deliveries.work.set()

    def pass_gap(self, topic: str, next_offset: int) -> None:
        """Note that a topic holds no records below an offset."""
        tracker = self.trackers[topic]
        if next_offset > tracker.position:
            tracker.read(next_offset, ())
            self._changed.add(topic)

    def finish(self, delivery: Delivery) -> None:
        """Note that the record that a delivery was read from is done."""
        self.trackers[delivery.topic].finish(delivery.offset)
        self._changed.add(delivery.topic)

    def take_unverified(self) -> Sequence[Delivery]:
        """Return the deliveries that are to be compared with the rows."""
        unverified, self._unverified = self._unverified, []
        return unverified

    def take_changed(self) -> dict[str, TopicOffsets]:
        """Return what is done of the topics where that has changed."""
        changed, self._changed = self._changed, set()
        return {topic: self.trackers[topic].offsets() for topic in changed if topic in self.trackers}

    def verify(self, deliveries: Sequence[Delivery], hops: Mapping[bytes, int]) -> None:
        """Let those records of retry topics wait for their time that are no copies, and redriven deliveries begin.

        `hops` is what the rows say. A delivery that is redriven while it waits goes on as it is: it never has two
        chains of retries. Of one that has ended and is not written down it is not known yet whether it waits: the next
        round tells.
        """
        ending = {each.delivery.delivery_id for each in self._deliveries.ended}
        for delivery in deliveries:
            redriven = delivery.topic == self._process.topics.deliveries
            if redriven and delivery.delivery_id in ending:
                self._unverified.append(delivery)
                continue
            expected = None if redriven else delivery.hop
            if hops.get(delivery.delivery_id) != expected or delivery.delivery_id in self._deliveries.active:
                metrics.DELIVERER_COPIES.inc()
                self.finish(delivery)
            elif redriven:
                self._deliveries.begin(delivery)
            else:
                self._deliveries.begin_at_due_time(delivery)

    def _compare(self, topic: str, tracker: OffsetTracker, batch: EventBatch) -> None:
        """Compare what an owner before has read last. Raises LogTruncated where Kafka holds another record there."""
        known = tracker.last
        rows = {len(batch) - 1} if len(batch) else set()
        if known is not None and rows and batch.offsets[0] <= known.offset and known.offset in batch.offsets:
            rows.add(batch.offsets.index(known.offset))
        for row in sorted(rows):
            if (difference := tracker.compare(record_of(batch, row))) is not None:
                raise LogTruncated(topic, self._partition, difference)

    def _sort_in(self, topic: str, tracker: OffsetTracker, delivery: Delivery) -> None:
        """Let a delivery begin if it is new, or have it compared with the rows if it may have been here before."""
        if topic != self._process.topics.deliveries:
            self._unverified.append(delivery)
        elif not self._is_new(tracker, delivery):
            metrics.DELIVERER_COPIES.inc()
            tracker.finish(delivery.offset)
        elif delivery.stream == "redrive":
            self._unverified.append(delivery)
        elif delivery.delivery_id in self._deliveries.active:
            metrics.DELIVERER_COPIES.inc()
            tracker.finish(delivery.offset)
        else:
            self._deliveries.begin(delivery)

    def _is_new(self, tracker: OffsetTracker, delivery: Delivery) -> bool:
        return delivery.offset < tracker.judged_to or self.marks.pass_new(delivery)
