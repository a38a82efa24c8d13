"""A slice of one partition, the unit of flow from Kafka to Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Consecutive records of one partition, as parallel lists in offset order.

    `fetched_from` is the position that the slice was read from and `next_offset` the position after it. Offsets
    between the two that have no record are gaps of the log itself (transaction markers, compaction), not losses:
    a checkpoint that is at or above `fetched_from` may advance to `next_offset`.

    `token` is the fencing token under which the slice was fetched; a slice fetched under an older one is stale.
    """

    topic: str
    partition: int
    token: int
    fetched_from: int
    next_offset: int
    offsets: list[int]
    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Sequence[tuple[str, bytes | None]]]

    def __len__(self) -> int:
        return len(self.offsets)

    def followed_by(self, later: EventBatch) -> EventBatch:
        """Return both as one batch; `later` must be what was read next, under the same token."""
        if later.fetched_from != self.next_offset or later.token != self.token:
            raise ValueError("the batches do not follow each other")
        return EventBatch(
            topic=self.topic,
            partition=self.partition,
            token=self.token,
            fetched_from=self.fetched_from,
            next_offset=later.next_offset,
            offsets=self.offsets + later.offsets,
            timestamps_ms=self.timestamps_ms + later.timestamps_ms,
            keys=self.keys + later.keys,
            values=self.values + later.values,
            headers=self.headers + later.headers,
        )

    def between(self, start: int, stop: int) -> EventBatch:
        """Return the records whose index is in `start:stop`; a gap goes with the record behind it."""
        first = self.fetched_from if start == 0 else self.offsets[start - 1] + 1
        last = first if stop == start else self.offsets[stop - 1] + 1
        if stop >= len(self):
            last = self.next_offset
        return EventBatch(
            topic=self.topic,
            partition=self.partition,
            token=self.token,
            fetched_from=first,
            next_offset=last,
            offsets=self.offsets[start:stop],
            timestamps_ms=self.timestamps_ms[start:stop],
            keys=self.keys[start:stop],
            values=self.values[start:stop],
            headers=self.headers[start:stop],
        )
