"""Reading dead letters, as any consumer of the topic can."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from tests.conftest import DEFAULT_PARTITIONS

DeadLetter = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""Key, value and headers."""


async def read_dead_letters(settings: Settings, topic: str) -> list[DeadLetter]:
    """Return the topic's dead letters, partition by partition, in the order of their offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_address(), enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(DEFAULT_PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        records_read = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                records_read += records
    finally:
        await consumer.stop()
    records_read.sort(key=lambda record: (record.partition, record.offset))
    return [(record.key, record.value, list(record.headers)) for record in records_read]


def by_offset(dead_letters: list[DeadLetter]) -> list[DeadLetter]:
    """Return them in the order of the records that they copy."""
    return sorted(dead_letters, key=offset_of)


def error_header(dead_letter: DeadLetter, name: str) -> bytes | None:
    """Return a header that the relay added."""
    return dict(dead_letter[2]).get(f"__connect.errors.{name}")


def offset_of(dead_letter: DeadLetter) -> int:
    """Return the offset of the record that it copies."""
    return int(error_header(dead_letter, "offset") or b"-1")
