"""Reading dead letters, as any consumer of the topic can."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from tests.conftest import DEFAULT_PARTITIONS

Letter = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""Key, value and headers."""


async def letters(settings: Settings, topic: str) -> list[Letter]:
    """What is on the topic, partition by partition, in the order in which it came."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_address(), enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(DEFAULT_PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
    finally:
        await consumer.stop()
    found.sort(key=lambda record: (record.partition, record.offset))
    return [(record.key, record.value, list(record.headers)) for record in found]


def by_place(found: list[Letter]) -> list[Letter]:
    """In the order of the records that they are of."""
    return sorted(found, key=offset_of)


def said(letter: Letter, name: str) -> bytes | None:
    return dict(letter[2]).get(f"__connect.errors.{name}")


def offset_of(letter: Letter) -> int:
    return int(said(letter, "offset") or b"-1")
