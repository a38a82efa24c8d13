"""A partition's watermarks, with what the broker says of its topic."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Watermarks:
    """The bounds of a partition's log: `low` is its first offset, `high` the one after its last.

    `partition_count` and `topic_id` are the topic's; `topic_id` is None where the broker has none.
    """

    low: int
    high: int
    partition_count: int
    topic_id: UUID | None
