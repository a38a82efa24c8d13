"""Batches for tests of the engine, made without Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from schemas import codec
from schemas.events import Event
from streams.batch import EventBatch
from streams.watermarks import Watermarks

TOPIC = "genesis.events"
PARTITIONS = 4
TOPIC_ID = UUID("6f1d3c3e-4f0a-4a53-9c57-2d0a0a6a7c11")
WATERMARKS = Watermarks(low=0, high=10_000_000, partition_count=PARTITIONS, topic_id=TOPIC_ID)

Record = tuple[bytes | None, bytes | None]
"""A key and a value."""


def record(event: Event) -> Record:
    """What ingress would publish."""
    return codec.key(event), codec.encode(event)


def batch_of(records: Sequence[Event | Record], *, token: int, start: int = 0, partition: int = 0) -> EventBatch:
    """A slice without gaps that begins at `start`."""
    pairs = [record(item) if isinstance(item, Event) else item for item in records]
    offsets = list(range(start, start + len(pairs)))
    return EventBatch(
        topic=TOPIC,
        partition=partition,
        token=token,
        fetched_from=start,
        next_offset=start + len(pairs),
        offsets=offsets,
        timestamps_ms=[1_760_000_000_000 + offset for offset in offsets],
        keys=[key for key, _ in pairs],
        values=[value for _, value in pairs],
        headers=[(("ce_specversion", b"1.0"), ("ce_source", b"test"))] * len(pairs),
    )
