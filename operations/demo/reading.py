"""The demo's queries: how many keys its producer had, and where the log ends in Kafka."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from database.connector import Database
from ingress.key_rows import COUNT
from runtime.settings import Settings
from streams.errors import KafkaUnavailable
from streams.kafka.clients import make_consumer
from streams.topics import describe


async def keys_made(database: Database, producer: str) -> int:
    """Count the keys that a producer has had. As plant_operator."""
    async with database.transaction() as connection:
        count: int = (await connection.execute(COUNT, {"producer": producer})).scalar_one()
    return count


async def log_ends(settings: Settings, topics: Sequence[str]) -> dict[tuple[str, int], int]:
    """Return, by topic and partition, the offset after the last record, from the broker."""
    known = await describe(settings, topics)
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(known[topic].partitions)]
    consumer = make_consumer(settings, isolation_level="read_committed")
    try:
        await consumer.start()
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} when asked where the log ends.") from error
    finally:
        await consumer.stop()
    return {(where.topic, where.partition): end for where, end in sorted(ends.items())}
