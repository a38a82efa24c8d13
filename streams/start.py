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


def parse_start(start: str) -> Start:
    """Return a start from its text; raise UnknownStart.

    >>> parse_start("42")
    42
    >>> parse_start("2026-11-23T08:00Z").isoformat()
    '2026-11-23T08:00:00+00:00'
    """
    match start:
        case "earliest":
            return "earliest"
        case "latest":
            return "latest"
    if start.isascii() and start.isdigit():
        return int(start)
    try:
        time = datetime.fromisoformat(start)
    except ValueError:
        raise UnknownStart(
            f"{start!r} is no start.",
            why="It is not earliest, latest, an offset, or a time such as 2026-11-23T08:00Z.",
            next_step="plant consume --from earliest",
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


async def offsets_at(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """Return the first offset to read in each partition, within what the log holds."""
    first = await consumer.beginning_offsets(partitions)
    end = await consumer.end_offsets(partitions)
    if start == "earliest":
        return dict(first)
    if start == "latest":
        return dict(end)
    if isinstance(start, datetime):
        timestamp_ms = max(0, int(start.timestamp() * 1000))  # Kafka takes no time before 1970
        first_at = await consumer.offsets_for_times(dict.fromkeys(partitions, timestamp_ms))
        return {
            partition: end[partition] if first_at[partition] is None else first_at[partition].offset
            for partition in partitions
        }
    assert isinstance(start, int)
    return {partition: min(max(start, first[partition]), end[partition]) for partition in partitions}
