"""A record's position: topic, partition, offset."""

from __future__ import annotations

import msgspec


class RecordPosition(msgspec.Struct, frozen=True, order=True):
    """A record's position, which a publish returns and `wait_for` waits for.

    >>> str(RecordPosition("genesis.events", 3, 42))
    'genesis.events/3@42'
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"
