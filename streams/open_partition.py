"""A partition that is open: it delivers records, from a position on, under one fencing token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from streams.batch import EventBatch
from streams.errors import StreamsError


@dataclass(slots=True, eq=False)
class OpenPartition:
    """The right to deliver one partition's records, from `position` on, under one fencing token."""

    token: int
    position: int
    fetch_state: Any
    """aiokafka's state of the partition, which belongs to one assignment; its position is the fetch's."""
    topic_id: UUID | None = None
    paused: bool = False
    stop_reason: StreamsError | None = None
    """Why nothing more is fetched; the partition's owner raises it."""

    @property
    def is_fetched(self) -> bool:
        """Whether records are to be fetched now."""
        return not self.paused and self.stop_reason is None

    def advance(self, topic: str, partition: int, records: list[Any]) -> EventBatch:
        """Return the records that were just fetched as a batch, and move the position to the fetch's."""
        batch = EventBatch(
            topic=topic,
            partition=partition,
            token=self.token,
            fetched_from=self.position,
            next_offset=self.fetch_state.position,
            offsets=[record.offset for record in records],
            timestamps_ms=[record.timestamp for record in records],
            keys=[record.key for record in records],
            values=[record.value for record in records],
            headers=[record.headers for record in records],
        )
        self.position = batch.next_offset
        return batch
