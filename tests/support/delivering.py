"""What tests of deliveries share: topics of their own, endpoints, queued deliveries, and what came of them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from database.connector import connect
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.delivery_id import delivery_id
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import (
    EndpointAction,
    EndpointConfiguration,
    EndpointId,
    EndpointSecrets,
    EndpointStart,
    new_endpoint_id,
)
from deliveries.schedule import SHORT_BACKOFF_SECONDS
from deliveries.signed_request import EndpointKeys
from operations.services.deliverer import Deliverer
from runtime.settings import Settings
from schemas import codec
from schemas.delivery_records import DeliveryAttempted, DeliveryQueued
from signing.master_key import MasterKeys
from streams.producer import EventProducer
from streams.topics import DEAD_DELIVERIES_TOPIC
from tests.support.waiting import wait_until_async

LOCAL: Final[Mapping[str, Any]] = {
    "deliveries_schemes": "http,https", "deliveries_ports": "1-65535", "deliveries_allowed_names": "receiver.test",
    "deliveries_allowed_networks": "127.0.0.1",
}  # fmt: skip
"""Settings with which endpoints may be on this machine."""

SECRET: Final = bytes(range(24))
PARTITIONS: Final = 2
LAST_ATTEMPT: Final = len(SHORT_BACKOFF_SECONDS) + 1
"""The number of the last attempt of a delivery on the schedule `short`."""


@asynccontextmanager
async def delivery_topics(settings: Settings, partitions: int = PARTITIONS) -> AsyncIterator[DeliveryTopics]:
    """Make the topics of deliveries under names of their own; they go at the end."""
    topics = DeliveryTopics(f"-{secrets.token_hex(6)}")
    names = [topics.deliveries, *topics.written, topics.endpoint_events]
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await client.start()
    try:
        config = {"message.timestamp.type": "LogAppendTime"}
        await client.create_topics([NewTopic(name, partitions, 1, topic_configs=config) for name in names])

        async def are_known() -> bool:
            return all(each["error_code"] == 0 for each in await client.describe_topics(names))

        await wait_until_async(are_known, "the broker knows the topics")
        yield topics
        await client.delete_topics(names)
    finally:
        await client.close()


async def add_endpoint(
    settings: Settings,
    url: str,
    *,
    endpoint_id: EndpointId | None = None,
    secrets_: EndpointSecrets | None = None,
    **choices: Any,
) -> EndpointId:
    """Store an endpoint that gets all events from the first offset on."""
    database = connect(settings, "operator")
    try:
        endpoint_id = endpoint_id or new_endpoint_id()
        configuration = EndpointConfiguration(url=url, **{"event_types": ("*",), **choices})
        secrets_ = secrets_ or EndpointSecrets(EndpointKeys(secrets=(SECRET,)))
        store = EndpointStore(database, MasterKeys(settings))
        await store.add(endpoint_id, configuration, secrets_, EndpointStart((0,)), tenant="genesis")
        return endpoint_id
    finally:
        await database.close()


async def change_state(settings: Settings, endpoint_id: UUID, *actions: EndpointAction) -> None:
    """Do actions on an endpoint, as an operator does."""
    database = connect(settings, "operator")
    try:
        for action in actions:
            await EndpointStore(database, MasterKeys(settings)).change_state(endpoint_id, action, f"Test: {action}")
    finally:
        await database.close()


def queued(
    endpoint_id: EndpointId, offset: int, *, entity_id: UUID | None = None, source_partition: int = 0, **changes: Any
) -> DeliveryQueued:
    """Return an event's delivery as a dispatcher writes it, of the event at an offset."""
    event_id = changes.pop("event_id", None) or uuid4()
    record = DeliveryQueued(
        event_id=event_id,
        delivery_id=UUID(bytes=delivery_id(event_id.bytes, endpoint_id.bytes)),
        endpoint_id=endpoint_id,
        type="genesis.agent.available",
        source="plant/tests",
        occurred_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        entity_id=entity_id or uuid4(),
        data=msgspec.json.encode({"offset": offset}),
        stream="live",
        source_partition=source_partition,
        source_offset=offset,
        source_rank=0,
        attempt=1,
        hop=0,
        token=1,
    )
    return msgspec.structs.replace(record, **changes)


async def publish(settings: Settings, topic: str, records: Iterable[DeliveryQueued]) -> None:
    """Put deliveries on a topic, in order."""
    async with EventProducer(settings, topics=(topic,)) as producer:
        publishes = [
            producer.submit_record(topic, str(each.endpoint_id).encode(), codec.encode(each), []) for each in records
        ]
        for each in publishes:
            await producer.await_acknowledgement(each)


async def read_values(settings: Settings, topic: str) -> list[Any]:
    """Return the values of a topic's records, by partition and in order."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=settings.kafka_bootstrap_servers, auto_offset_reset="earliest",
        enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        records: list[Any] = []
        for partition, end in sorted(ends.items()):
            while await consumer.position(partition) < end:
                records += (await consumer.getmany(partition, timeout_ms=500)).get(partition, [])
        return [codec.decode_record(record.value) for record in records]
    finally:
        await consumer.stop()


async def attempts_of(settings: Settings, topics: DeliveryTopics) -> list[DeliveryAttempted]:
    """Return what is on the topic of attempts."""
    return await read_values(settings, topics.attempts)


async def dead_letters_of(settings: Settings, topics: DeliveryTopics) -> Sequence[DeliveryQueued]:
    """Return what is on the topic of dead deliveries."""
    return await read_values(settings, DEAD_DELIVERIES_TOPIC + topics.generation)


@asynccontextmanager
async def delivering(settings: Settings, topics: DeliveryTopics) -> AsyncIterator[Deliverer]:
    """Run a deliverer in this process."""
    deliverer = Deliverer(settings, topics)
    try:
        await deliverer.start()
        yield deliverer
    finally:
        await deliverer.stop()
