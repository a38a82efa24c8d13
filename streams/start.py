"""Where in a topic to start reading."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Literal

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from streams.errors import UnknownStart

Start = Literal["earliest", "latest"] | datetime | int
"""`earliest`, `latest`, a time (the first record at or after it), or an offset (the same in every partition)."""


def parse_start(given: str) -> Start:
    """A start from its text; raises UnknownStart.

    >>> parse_start("42")
    42
    >>> parse_start("2026-11-23T08:00Z").isoformat()
    '2026-11-23T08:00:00+00:00'
    """
    match given:
        case "earliest":
            return "earliest"
        case "latest":
            return "latest"
    if given.isascii() and given.isdigit():
        return int(given)
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise UnknownStart(
            f"{given!r} is no place to start from.",
            why="It is not earliest, latest, an offset, or a time such as 2026-11-23T08:00Z.",
            next_step="plant consume --from earliest",
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


async def offsets_at(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """The first offset to read in each partition, within what the log holds."""
    first = await consumer.beginning_offsets(partitions)
    end = await consumer.end_offsets(partitions)
    if start == "earliest":
        return dict(first)
    if start == "latest":
        return dict(end)
    if isinstance(start, datetime):
        timestamp_ms = max(0, int(start.timestamp() * 1000))  # Kafka knows no time before 1970
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, timestamp_ms))
        return {
            partition: end[partition] if found[partition] is None else found[partition].offset
            for partition in partitions
        }
    assert isinstance(start, int)
    return {partition: min(max(start, first[partition]), end[partition]) for partition in partitions}
