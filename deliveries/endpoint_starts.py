"""Where a new endpoint's events begin, read from the topic."""

from __future__ import annotations

from datetime import datetime

from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from deliveries.endpoints import EndpointStart
from runtime.settings import Settings
from streams.errors import KafkaUnavailable, TopicMissing
from streams.kafka.clients import make_consumer
from streams.start import offsets_at
from streams.topics import EVENTS_TOPIC


async def read_start(settings: Settings, at: datetime | None, topic: str = EVENTS_TOPIC) -> EndpointStart:
    """Return where the topic's partitions end now, or, with a time, their first records at or after it.

    Read it before the endpoint is stored: what is appended in between is then the endpoint's too. Raises
    KafkaUnavailable, TopicMissing.
    """
    consumer = make_consumer(settings, group_id=None, enable_auto_commit=False, isolation_level="read_committed")
    try:
        await consumer.start()
        if topic not in await consumer.topics():
            raise TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics apply")
        partitions = [TopicPartition(topic, number) for number in await consumer.partition_numbers(topic)]
        offsets = await offsets_at(consumer, partitions, "latest" if at is None else at)
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()
    return EndpointStart(tuple(offsets[partition] for partition in partitions), at)
