"""The watermarks of whole topics, for those who watch: a partition that does not answer hides no other one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from streams.errors import KafkaUnavailable
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer
from streams.topics import describe

REQUEST_TIMEOUT_MS: Final = 10_000


class TopicWatermarks(msgspec.Struct, frozen=True):
    """A topic's id, and its partitions' first offset and high watermark; None for one that does not answer."""

    topic_id: UUID
    bounds: dict[int, tuple[int, int] | None]


async def read_watermarks(settings: Settings, topics: Iterable[str]) -> dict[str, TopicWatermarks]:
    """Return the watermarks of those topics that exist. Raises KafkaUnavailable, ConfigurationError."""
    described = await describe(settings, sorted(topics))
    if not described:
        return {}
    consumer = make_consumer(settings, isolation_level="read_committed", request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await consumer.start()
        partitions = [
            TopicPartition(topic.name, number) for topic in described.values() for number in range(topic.partitions)
        ]
        answers = await asyncio.gather(*(_bounds(consumer, partition) for partition in partitions))
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()
    bounds: dict[str, dict[int, tuple[int, int] | None]] = {name: {} for name in described}
    for partition, answer in zip(partitions, answers, strict=True):
        bounds[partition.topic][partition.partition] = answer
    return {name: TopicWatermarks(topic.topic_id, bounds[name]) for name, topic in described.items()}


async def _bounds(consumer: RepairedConsumer, partition: TopicPartition) -> tuple[int, int] | None:
    try:
        low = (await consumer.beginning_offsets([partition]))[partition]
        return low, (await consumer.end_offsets([partition]))[partition]
    except (KafkaError, TimeoutError):  # it has no leader, say
        return None
