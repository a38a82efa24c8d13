"""Endpoints that are stored for a test, and the deliveries that dispatchers have published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from database.connector import connect
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import (
    EndpointAction,
    EndpointConfiguration,
    EndpointId,
    EndpointSecrets,
    EndpointStart,
    Ordering,
)
from deliveries.signed_request import EndpointKeys
from runtime.settings import Settings
from schemas import codec
from schemas.delivery_records import DELIVERIES_TOPIC, DeliveryQueued
from signing.master_key import MasterKeys

EVERYTHING = ("genesis.*",)


class Published(NamedTuple):
    """A delivery's record, and where it is."""

    partition: int
    offset: int
    key: bytes
    queued: DeliveryQueued

    @property
    def order(self) -> tuple[int, int, bytes]:
        """What tells a copy: its rank among the deliveries of a source partition."""
        return self.queued.source_offset, self.queued.source_rank, self.queued.endpoint_id.bytes


async def add_endpoint(
    settings: Settings,
    number: int,
    *,
    event_types: Sequence[str] = EVERYTHING,
    event_filter: Mapping[str, Any] | None = None,
    starts: Sequence[int] = (0,),
    ordering: Ordering = "none",
) -> EndpointId:
    """Store an active endpoint whose id is a number. Partitions without a start begin at their beginning."""
    endpoint_id = EndpointId(UUID(int=number))
    configuration = EndpointConfiguration(
        url="https://example.com/hooks", event_types=tuple(event_types), filter=dict(event_filter or {}),
        ordering=ordering,
    )  # fmt: skip
    secrets = EndpointSecrets(EndpointKeys(secrets=(bytes(24),)))
    operator = connect(settings, "operator")
    try:
        store = EndpointStore(operator, MasterKeys(settings))
        await store.add(endpoint_id, configuration, secrets, EndpointStart(tuple(starts)), tenant="genesis")
    finally:
        await operator.close()
    return endpoint_id


async def change_endpoint(
    settings: Settings, endpoint_id: EndpointId, action: EndpointAction, start: EndpointStart | None = None
) -> None:
    """Do an action of an operator's, with the offsets from which a resumed one gets events."""
    operator = connect(settings, "operator")
    try:
        await EndpointStore(operator, MasterKeys(settings)).change_state(endpoint_id, action, "a test", start)
    finally:
        await operator.close()


async def read_deliveries(settings: Settings, topic: str = DELIVERIES_TOPIC) -> list[Published]:
    """Return every record of a topic of deliveries, partition by partition, in the order of their offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_address(), enable_auto_commit=False)
    await consumer.start()
    try:
        numbers = range(settings.topic_partitions)
        partitions = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[Published] = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    queued = codec.decode_record(record.value, DELIVERIES_TOPIC)
                    assert isinstance(queued, DeliveryQueued)
                    found.append(Published(record.partition, record.offset, record.key, queued))
    finally:
        await consumer.stop()
    return sorted(found, key=lambda each: (each.partition, each.offset))


def without_copies(published: Sequence[Published]) -> list[Published]:
    """Return the deliveries that a reader takes: those above the highest of their source that it has seen before.

    Of a backfill the endpoint is part of the source.
    """
    highest: dict[tuple[object, ...], tuple[int, int, bytes]] = {}
    taken = []
    for each in published:
        queued = each.queued
        stream = queued.endpoint_id if queued.stream == "backfill" else queued.stream
        source = (each.partition, stream, queued.source_partition)
        if source not in highest or each.order > highest[source]:
            highest[source] = each.order
            taken.append(each)
    return taken
