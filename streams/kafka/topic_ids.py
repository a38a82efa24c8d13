"""Kafka's Metadata request, version 12: the first that asks for and answers topic ids by name without ACL fields.

aiokafka 0.14 stops at version 5, which has neither ids nor leader epochs. Fields: https://kafka.apache.org/protocol#The_Messages_Metadata
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from io import BytesIO
from typing import Final
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from aiokafka.structs import TopicPartition

from runtime.logging import get_logger
from streams.kafka.repair import Repair
from streams.watermarks import Leadership

log = get_logger(__name__)

REPAIR: Final = Repair(
    name="topic ids",
    needed_by="aiokafka 0.14.0",
    reason="Its Metadata request stops at version 5, whose answers have neither topic ids nor leader epochs.",
    until="aiokafka has Metadata 12.",
    touches=(
        "aiokafka.client:AIOKafkaClient.cluster",
        "aiokafka.client:AIOKafkaClient.send(node_id, request)",
        "aiokafka.cluster:ClusterMetadata.leader_for_partition(partition)",
        "aiokafka.protocol.api:Request.build(request_struct_class)",
        "aiokafka.protocol.api:RequestStruct.FLEXIBLE_VERSION",
        "aiokafka.protocol.abstract:AbstractType.encode(value)",
        "aiokafka.protocol.types:CompactArray",
        "aiokafka.protocol.types:TaggedFields",
    ),
)

_ANY_ID = UUID(int=0)


class Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka is not type-checked here
    """16 bytes, most significant first."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class MetadataResponse_v12(Response):  # type: ignore[misc]  # noqa: N801 (the protocol's own spelling)
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class MetadataRequest_v12(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = MetadataResponse_v12
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicIdsRequest(Request[MetadataRequest_v12]):  # type: ignore[misc]
    """Ask for topics by name; the answer's `topics` begin (error_code, name, topic_id, ...). Kafka 3.1 or later."""

    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[MetadataRequest_v12]) -> MetadataRequest_v12:
        return request_struct_class([(_ANY_ID, name, {}) for name in self._names], False, False, {})


async def leaderships(
    client: AIOKafkaClient, partitions: Collection[TopicPartition], timeout_seconds: float
) -> dict[TopicPartition, Leadership]:
    """Ask the partitions' leaders, all at once, for their topics' ids and their leader epochs.

    A partition is missing where it has no leader, or one that has not answered in time or does not know it: its topic
    was deleted, say.
    """
    by_leader: defaultdict[int, list[TopicPartition]] = defaultdict(list)
    for partition in partitions:
        leader = client.cluster.leader_for_partition(partition)
        if leader is not None and leader >= 0:
            by_leader[leader].append(partition)
    asked = [asyncio.create_task(_ask(client, leader, led)) for leader, led in by_leader.items()]
    if not asked:
        return {}
    try:
        done, _ = await asyncio.wait(asked, timeout=timeout_seconds)
    finally:
        for task in asked:
            task.cancel()
    return {partition: leadership for task in done for partition, leadership in task.result().items()}


async def _ask(client: AIOKafkaClient, leader: int, led: Sequence[TopicPartition]) -> dict[TopicPartition, Leadership]:
    try:
        answer = await client.send(leader, TopicIdsRequest(sorted({partition.topic for partition in led})))
    except KafkaError as error:
        log.warning("topics.not_identified", broker=leader, why=repr(error))
        return {}
    known = {
        TopicPartition(name, number): Leadership(topic_id, leader_epoch)
        for code, name, topic_id, _internal, partitions, *_ in answer.topics
        if code == 0
        for _, number, _leader, leader_epoch, *_ in partitions
    }
    return {partition: known[partition] for partition in led if partition in known}
