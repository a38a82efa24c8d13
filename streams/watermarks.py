"""A partition's watermarks, with what its leader says of it."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID


class Leadership(NamedTuple):
    """The id of a partition's topic, and the epoch of its leader: it rises with each election.

    While neither changes, the log only grows at its end.
    """

    topic_id: UUID
    leader_epoch: int


class Watermarks(NamedTuple):
    """The bounds of a partition's log: `low` is its first offset, `high` the one after its last.

    `partition_count` is the topic's.
    """

    low: int
    high: int
    partition_count: int
    leadership: Leadership
