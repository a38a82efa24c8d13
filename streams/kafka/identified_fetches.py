"""Fetches that name the log they are about: the topic's id, and the epoch of the leader that it was acquired under.

aiokafka fetches by a topic's name, and without an epoch. A topic that was deleted and made again, or a log that lost
its tail and grew again, would answer with other records at the same offsets. Kafka's Fetch 13 names both, so the leader
itself refuses; nothing has to be asked again after each fetch.

Fields: https://kafka.apache.org/protocol#The_Messages_Fetch
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Collection, Sequence
from io import SEEK_CUR, BytesIO
from typing import Any, Final, TypeAlias
from uuid import UUID

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
    UnsignedVarInt32,
)
from aiokafka.structs import TopicPartition

from streams.kafka.repair import Repair
from streams.kafka.topic_ids import Uuid
from streams.watermarks import Leadership

REPAIR: Final = Repair(
    name="identified fetches",
    needed_by="aiokafka 0.14.0",
    reason="Its fetches stop at version 11, which name a topic by its name, and it sends no epoch: a topic that was"
    " made again, or a log that lost its tail, would be read on at the same offsets.",
    until="aiokafka fetches by topic id and with the epoch that the caller names (Fetch 13).",
    touches=(
        "aiokafka.client:AIOKafkaClient.send(node_id, request)",
        "aiokafka.consumer.fetcher:FetchRequest",
        "aiokafka.protocol.fetch:FetchRequest.topics",
        "aiokafka.protocol.fetch:FetchRequest._isolation_level",
        "aiokafka.protocol.fetch:FetchRequest._max_bytes",
        "aiokafka.protocol.fetch:FetchRequest._max_wait_ms",
        "aiokafka.protocol.fetch:FetchRequest._min_bytes",
        "aiokafka.protocol.api:Request.build(request_struct_class)",
        "aiokafka.protocol.api:RequestStruct.FLEXIBLE_VERSION",
        "aiokafka.protocol.abstract:AbstractType.encode(value)",
        "aiokafka.protocol.types:CompactBytes",
        "aiokafka.protocol.types:UnsignedVarInt32",
    ),
)

FENCED_LEADER_EPOCH: Final = 74
UNKNOWN_LEADER_EPOCH: Final = 75
UNKNOWN_TOPIC_ID: Final = 100
INCONSISTENT_TOPIC_ID: Final = 103
REFUSALS: Final = frozenset({FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID})

REFUSED_SECONDS: Final = 0.2
"""How long a partition is not fetched whose log was refused."""

AskedPartition: TypeAlias = tuple[int, int, int, int]
FetchedPartition: TypeAlias = tuple[int, int, int, int, list[tuple[int, int]], bytes]
"""Number, error, high watermark, last stable offset, aborted transactions as (producer, first offset), records."""

_NONE: Final = -1
_NO_TAGS: Final = b"\0"
_NO_SESSION: Final = (0, -1)
_CONSUMER: Final = -1


class AskedPartitions(AbstractType[Sequence[AskedPartition]]):  # type: ignore[misc]  # aiokafka is not type-checked
    """The partitions of one topic in a request: a compact array of (partition, epoch, offset, most bytes).

    Written and read here by `struct`, not as a schema: field by field it costs five times as much, for each fetch.
    """

    # Number, leader's epoch, offset, epoch of the last record, start of the log, most bytes.
    _pack = struct.Struct(">iiqiqi").pack

    @classmethod
    def encode(cls, value: Sequence[AskedPartition]) -> bytes:
        packed = [
            cls._pack(number, epoch, offset, _NONE, _NONE, max_bytes) + _NO_TAGS
            for number, epoch, offset, max_bytes in value
        ]
        return b"".join((UnsignedVarInt32.encode(len(packed) + 1), *packed))


class FetchedPartitions(AbstractType[list[FetchedPartition]]):  # type: ignore[misc]
    """The partitions of one topic in an answer, in the layout of Fetch 4."""

    # Number, error, high watermark, last stable offset, start of the log.
    _head = struct.Struct(">ihqqq")
    _aborted = struct.Struct(">qq")
    _REPLICA_BYTES = 4

    @classmethod
    def decode(cls, data: BytesIO) -> list[FetchedPartition]:
        return [cls._partition(data) for _ in range(UnsignedVarInt32.decode(data) - 1)]

    @classmethod
    def _partition(cls, data: BytesIO) -> FetchedPartition:
        number, error, high_watermark, stable, _start = cls._head.unpack(data.read(cls._head.size))
        aborted = []
        for _ in range(UnsignedVarInt32.decode(data) - 1):
            aborted.append(cls._aborted.unpack(data.read(cls._aborted.size)))
            TaggedFields.decode(data)
        data.seek(cls._REPLICA_BYTES, SEEK_CUR)
        records = CompactBytes.decode(data) or b""
        TaggedFields.decode(data)
        return number, error, high_watermark, stable, aborted, records


class FetchResponse_v13(Response):  # type: ignore[misc]  # noqa: N801 (the protocol's own spelling)
    API_KEY = 1
    API_VERSION = 13
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        ("topics", CompactArray(("topic_id", Uuid), ("partitions", FetchedPartitions), ("tags", TaggedFields))),
        ("tags", TaggedFields),
    )


class FetchRequest_v13(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 1
    API_VERSION = 13
    RESPONSE_TYPE = FetchResponse_v13
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_ms", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        ("topics", CompactArray(("topic_id", Uuid), ("partitions", AskedPartitions), ("tags", TaggedFields))),
        (
            "forgotten_topics",
            CompactArray(("topic_id", Uuid), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
        ),
        ("rack_id", CompactString("utf-8")),
        ("tags", TaggedFields),
    )


class IdentifiedFetchRequest(Request[FetchRequest_v13]):  # type: ignore[misc]
    """A fetch of aiokafka's, of those partitions whose log is known. Kafka 3.1 or later."""

    API_KEY = 1

    def __init__(self, fetch: FetchRequest, logs: dict[TopicPartition, Leadership]) -> None:
        self._fetch = fetch
        self._logs = logs

    def build(self, request_struct_class: type[FetchRequest_v13]) -> FetchRequest_v13:
        fetch = self._fetch
        return request_struct_class(
            _CONSUMER, fetch._max_wait_ms, fetch._min_bytes, fetch._max_bytes, fetch._isolation_level, *_NO_SESSION,
            self._topics(), [], "", {},
        )  # fmt: skip

    def _topics(self) -> list[tuple[UUID, list[AskedPartition], dict[int, bytes]]]:
        by_id: defaultdict[UUID, list[AskedPartition]] = defaultdict(list)
        for name, partitions in self._fetch.topics:
            for number, offset, max_bytes in partitions:
                log = self._logs.get(TopicPartition(name, number))
                if log is not None:
                    by_id[log.topic_id].append((number, log.leader_epoch, offset, max_bytes))
        return [(topic_id, asked, {}) for topic_id, asked in by_id.items()]


class NamedFetch:
    """The answer to a fetch, by topics' names and in the layout of Fetch 4, as aiokafka's fetcher reads it."""

    API_VERSION: Final = 4

    def __init__(self, topics: Sequence[tuple[str, Sequence[FetchedPartition]]]) -> None:
        self.topics = topics


class IdentifiedFetches:
    """What one client fetches: partitions whose log was named, and no others.

    A partition is named once its owner knows the log; what was fetched of it before, or of another log, is dropped.
    """

    def __init__(self, client: AIOKafkaClient) -> None:
        """Change the client, which has not been started yet: fetches go through here from now on."""
        self._send = client.send
        self._logs: dict[TopicPartition, Leadership] = {}
        self._refused: set[TopicPartition] = set()
        self._not_before: dict[TopicPartition, float] = {}
        client.send = self.send

    def name(self, partition: TopicPartition, log: Leadership) -> None:
        """Fetch a partition's records of this log alone from now on."""
        self._logs[partition] = log
        self._not_before.pop(partition, None)

    def take_refused(self, among: Collection[TopicPartition]) -> list[TopicPartition]:
        """Return which of these partitions have a leader that has refused their log, once.

        It is of another epoch, or the topic is not there any more, or the leader does not know of it yet.
        """
        refused = [each for each in among if each in self._refused]
        self._refused.difference_update(refused)
        return refused

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        """Send a request as the client does; a fetch of aiokafka's as one that names the logs. Raises KafkaError."""
        if not isinstance(request, FetchRequest):
            return await self._send(node_id, request, **options)
        logs = self._named(request)
        if not logs:
            await asyncio.sleep(request._max_wait_ms / 1000)
            return NamedFetch(())
        answer = await self._send(node_id, IdentifiedFetchRequest(request, logs), **options)
        if answer.error_code:
            raise for_code(answer.error_code)
        return self._by_name(answer, logs)

    def _named(self, request: FetchRequest) -> dict[TopicPartition, Leadership]:
        now = asyncio.get_running_loop().time()
        asked = (TopicPartition(name, number) for name, partitions in request.topics for number, *_ in partitions)
        return {
            each: self._logs[each] for each in asked if each in self._logs and self._not_before.get(each, 0.0) <= now
        }

    def _by_name(self, answer: FetchResponse_v13, logs: dict[TopicPartition, Leadership]) -> NamedFetch:
        names = {(log.topic_id, each.partition): each for each, log in logs.items()}
        topics = []
        for topic_id, partitions, _ in answer.topics:
            for fetched in partitions:
                number, error, *_ = fetched
                partition = names[topic_id, number]
                if self._logs.get(partition) != logs[partition]:
                    continue
                if error in REFUSALS:
                    self._note_refused(partition)
                    continue
                topics.append((partition.topic, [fetched]))
        return NamedFetch(topics)

    def _note_refused(self, partition: TopicPartition) -> None:
        self._refused.add(partition)
        self._not_before[partition] = asyncio.get_running_loop().time() + REFUSED_SECONDS
