"""Records to one topic in their order, as many at a time as a producer has room for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from streams.errors import Overloaded, StreamsError
from streams.producer import ROOM_POLL_SECONDS, EventProducer
from streams.record_position import RecordPosition

ROOM_TIMEOUT_SECONDS: Final = 10.0
"""How long records wait while those of others fill the producer."""


class OrderedRecord(NamedTuple):
    """A record to publish."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes | None]]


async def publish_in_order(
    producer: EventProducer, topic: str, records: Sequence[OrderedRecord]
) -> list[RecordPosition]:  # fmt: skip
    """Publish records, and return their positions once Kafka has acknowledged all. None is sent before the part ahead
    of it was acknowledged.

    Raises what the producer raises, at the first record that fails: from then on it is unknown which were written.
    """
    clock = asyncio.get_running_loop().time
    positions: list[RecordPosition] = []
    room_until = clock() + ROOM_TIMEOUT_SECONDS
    while len(positions) < len(records):
        publishes = []
        try:
            for key, value, headers in records[len(positions) :]:
                publishes.append(producer.submit_record(topic, key, value, headers))
        except Overloaded:
            if not publishes:
                if clock() >= room_until:
                    raise
                await asyncio.sleep(ROOM_POLL_SECONDS)
                continue
        for outcome in await producer.await_each(publishes):
            if isinstance(outcome, StreamsError):
                raise outcome
            positions.append(outcome)
        room_until = clock() + ROOM_TIMEOUT_SECONDS
    return positions
