"""The deliveries of one partition's events to Kafka: made in the order of the events, sent in slices, acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from deliveries.dispatch.delivery_sender import (
    SLICE_BYTES_MAX,
    SLICE_RECORDS_MAX,
    EndOffsets,
    PendingSlice,
    slices,
)
from deliveries.dispatch.dispatcher_parts import DispatcherParts
from deliveries.dispatch.queued_deliveries import DeliveryRecord, DispatchedStream, MatchAt, deliveries_of
from projections.effective_events import EffectiveEvent, decode_effective
from runtime import metrics
from schemas.events import Event
from streams.errors import OwnershipLost

FEW_DELIVERIES: Final = 256
FEW_SECONDS: Final = 0.005
"""What the event loop makes in one go, and the event with which that is reached: all other partitions wait for it."""


class PartitionSender:
    """What one owner of a partition sends. Nothing more is sent once its partition was given up."""

    def __init__(self, parts: DispatcherParts, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._types_in_use = parts.directory.types_in_use
        self._in_flight = PendingSlice(parts.sender)
        self._interrupted = threading.Event()

    def begin(self, interrupted: threading.Event) -> None:
        """Send for an owner, until its event is set."""
        self._interrupted = interrupted

    def publish(self, events: Iterable[EffectiveEvent], match_at: MatchAt, by: DispatchedStream) -> int:
        """Publish the deliveries of events in their order; return how many, once Kafka has acknowledged all.

        Raises OwnershipLost, SchemaNewer, AppliedEventUnreadable, or what the producer raises.
        """
        count = 0
        for records in slices(self._deliveries(events, match_at, by), SLICE_RECORDS_MAX, SLICE_BYTES_MAX):
            self.require_current()
            self._in_flight.send(records)
            count += len(records)
        self._in_flight.await_acknowledgement()
        metrics.DISPATCHER_DELIVERIES.labels(by.stream).inc(count)
        return count

    def few_deliveries(
        self,
        events: Iterable[EffectiveEvent],
        match_at: MatchAt,
        by: DispatchedStream,
        is_indexed: Callable[[str], bool],
    ) -> list[DeliveryRecord] | None:
        """Return the deliveries of a few events; None where they are many or large, or it takes long to find them.

        So it does where nobody has asked for an event's type yet: of many endpoints its part of the index takes
        seconds. Raises SchemaNewer, AppliedEventUnreadable.
        """
        until = time.perf_counter() + FEW_SECONDS
        found: list[DeliveryRecord] = []
        size_bytes = 0
        for each in events:
            event = self.decode(each)
            if time.perf_counter() > until or not is_indexed(event.event_type):
                return None
            for record in deliveries_of(each, event, match_at(each.effective_offset), by):
                found.append(record)
                size_bytes += len(record.value)
                if len(found) > FEW_DELIVERIES or size_bytes > SLICE_BYTES_MAX:
                    return None
        return found

    async def publish_few(self, records: Sequence[DeliveryRecord], by: DispatchedStream) -> None:
        """Publish a few deliveries from the event loop; return once Kafka has acknowledged all."""
        self.require_current()
        if records:
            self._in_flight.send(records)
            await self._in_flight.acknowledged()
            metrics.DISPATCHER_DELIVERIES.labels(by.stream).inc(len(records))

    def publish_slice(self, records: Sequence[DeliveryRecord]) -> EndOffsets:
        """Publish a slice, and return the offsets behind it once Kafka has acknowledged it."""
        self.require_current()
        self._in_flight.send(records)
        return self._in_flight.await_acknowledgement()

    def decode(self, effective: EffectiveEvent) -> Event:
        """Return an event that the log calls applied. Raises SchemaNewer, AppliedEventUnreadable."""
        return decode_effective(self._topic, self._partition, effective)

    def require_current(self) -> None:
        """Raise OwnershipLost where the partition was given up."""
        if self._interrupted.is_set():
            raise OwnershipLost(why="The partition was given up before its deliveries were published.")

    def forget(self) -> None:
        """Wait until nothing is on its way, whatever became of it."""
        self._in_flight.forget()

    def _deliveries(
        self, events: Iterable[EffectiveEvent], match_at: MatchAt, by: DispatchedStream
    ) -> Iterator[DeliveryRecord]:
        for each in events:
            event = self.decode(each)
            self._types_in_use.add(event.event_type)
            yield from deliveries_of(each, event, match_at(each.effective_offset), by)
