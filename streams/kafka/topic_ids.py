"""Kafka's Metadata request, version 12: the first that asks for and answers topic ids by name without ACL fields.

aiokafka 0.14 stops at version 5, which has no ids. Fields: https://kafka.apache.org/protocol#The_Messages_Metadata
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Final
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from aiokafka.structs import TopicPartition

from streams.kafka.repair import Repair

REPAIR: Final = Repair(
    name="topic ids",
    needed_by="aiokafka 0.14.0",
    reason="Its Metadata request stops at version 5, whose answers have no topic ids; it fetches by name, so a topic"
    " that was deleted and made again would be read on at the same offsets.",
    until="aiokafka has Metadata 12, or fetches by topic id (Fetch 13).",
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


async def topic_ids_at_leaders(client: AIOKafkaClient, partitions: Iterable[TopicPartition]) -> dict[str, UUID]:
    """Ask the partitions' leaders for the ids of their topics, by name; a topic that was deleted is missing."""
    names: dict[int, set[str]] = {}
    for partition in partitions:
        names.setdefault(client.cluster.leader_for_partition(partition), set()).add(partition.topic)
    ids: dict[str, UUID] = {}
    for leader, topics in names.items():
        answer = await client.send(leader, TopicIdsRequest(sorted(topics)))
        ids |= {name: topic_id for code, name, topic_id, *_ in answer.topics if code == 0}
    return ids
