"""A partition that is open: it delivers records, from a position on, under one fencing token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.batch import EventBatch
from streams.errors import LogTruncated, StreamsError
from streams.kafka.record_columns import RecordColumns
from streams.log_end import LogEnd
from streams.watermarks import Leadership


@dataclass(slots=True, eq=False)
class OpenPartition:
    """The right to deliver one partition's records, from `position` on, under one fencing token."""

    token: int
    position: int
    fetch_state: Any
    """aiokafka's state of the partition, which belongs to one assignment; its position is the fetch's."""
    leadership: Leadership
    """The topic and leader epoch that it was acquired under; nothing of another is delivered."""
    log_end: LogEnd | None = None
    """What Kafka's records up to the checkpoint are to be; None once they were compared."""
    paused: bool = False
    stop_reason: StreamsError | None = None
    """Why nothing more is fetched; the partition's owner raises it."""

    @property
    def is_fetched(self) -> bool:
        """Whether records are to be fetched now."""
        return not self.paused and self.stop_reason is None

    @property
    def has_moved(self) -> bool:
        """Whether the fetch is ahead of what was delivered; past gaps it gets there without a record."""
        return bool(self.fetch_state.position > self.position)

    def advance(self, topic: str, partition: int, records: RecordColumns | None) -> EventBatch | None:
        """Return the records that were just fetched as a batch, and move the position to the fetch's.

        Up to the checkpoint they are compared and not delivered: None where there are no others. A difference sets the
        stop reason.
        """
        fetched_from, next_offset = self.position, self.fetch_state.position
        records = records or RecordColumns.of(())
        if self.log_end is not None:
            checkpoint = self.log_end.next_offset
            difference = self.log_end.difference(records, fetched_from, next_offset)
            if difference is not None:
                self.stop_reason = LogTruncated(topic, partition, difference)
                return None
            records = records.since(checkpoint)
            fetched_from = checkpoint
            if next_offset >= checkpoint:
                self.log_end = None
        self.position = next_offset
        if next_offset <= fetched_from:
            return None
        return EventBatch(
            topic=topic,
            partition=partition,
            token=self.token,
            fetched_from=fetched_from,
            next_offset=next_offset,
            offsets=records.offsets,
            timestamps_ms=records.timestamps_ms,
            keys=records.keys,
            values=records.values,
            headers=records.headers,
        )
