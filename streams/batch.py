"""A slice of one partition, the unit of flow from Kafka to Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

from streams.errors import OwnershipLost

RECORD_OVERHEAD_BYTES: Final = 205
"""Python's cost of a record that waits, without its content: two numbers, a key, a value, headers (measured with
`tracemalloc`)."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Consecutive records of one partition, as parallel lists in offset order.

    `fetched_from` is the position that the slice was read from and `next_offset` the position after it. Offsets
    between the two that have no record are gaps of the log itself (transaction markers, compaction), not losses:
    a checkpoint that is at or above `fetched_from` may advance to `next_offset`.

    Headers come in canonical bytes (:func:`audit.canonical.headers_bytes`): as pairs, a record that waits takes more
    than twice the memory, and Python's cycle collector looks at each pair.

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
    headers: list[bytes]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def size_bytes(self) -> int:
        """The memory that the records take: keys, values and headers, and Python's objects around them."""
        return (
            len(self) * RECORD_OVERHEAD_BYTES
            + sum(map(len, filter(None, self.keys)))
            + sum(map(len, filter(None, self.values)))
            + sum(map(len, self.headers))
        )

    @staticmethod
    def joined(slices: Sequence[EventBatch]) -> EventBatch:
        """Return slices as one batch, in time that grows with their records.

        Raises OwnershipLost where one does not follow the one before it, or is of another token: a rebalance can cut
        off slices on their way, and they are read again.
        """
        first, last = slices[0], slices[-1]
        for earlier, later in pairwise(slices):
            if later.fetched_from != earlier.next_offset or later.token != earlier.token:
                raise OwnershipLost(
                    why=f"Offsets {earlier.next_offset} to {later.fetched_from} have not arrived and are read again."
                )
        if len(slices) == 1:
            return first
        return EventBatch(
            topic=first.topic,
            partition=first.partition,
            token=first.token,
            fetched_from=first.fetched_from,
            next_offset=last.next_offset,
            offsets=list(chain.from_iterable(each.offsets for each in slices)),
            timestamps_ms=list(chain.from_iterable(each.timestamps_ms for each in slices)),
            keys=list(chain.from_iterable(each.keys for each in slices)),
            values=list(chain.from_iterable(each.values for each in slices)),
            headers=list(chain.from_iterable(each.headers for each in slices)),
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
