"""Fetches that name the log they are about: the topic's id, and the epoch of the leader that it was acquired under.

aiokafka fetches by a topic's name, and without an epoch. A topic that was deleted and made again, or a log that lost
its tail and grew again, would answer with other records at the same offsets. Kafka's Fetch 13 names both, so the leader
itself refuses; nothing has to be asked again after each fetch.

A fetch belongs to a session of its broker (KIP-227): it names what has changed since the one before it, and the answer
has only partitions with something new.

Fields: https://kafka.apache.org/protocol#The_Messages_Fetch
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from io import SEEK_CUR, BytesIO
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
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

FETCH_SESSION_ID_NOT_FOUND: Final = 70
INVALID_FETCH_SESSION_EPOCH: Final = 71
FETCH_SESSION_TOPIC_ID_ERROR: Final = 106
SESSION_OVER: Final = frozenset({FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH, FETCH_SESSION_TOPIC_ID_ERROR})
"""The broker has dropped a session, for others or with its memory: the next fetch names everything again."""

REFUSED_SECONDS: Final = 0.2
"""How long a partition is not fetched whose log was refused."""

QUIET_WAIT_MS: Final = 200
"""How long a broker waits for records where it is asked for all that it has of the consumer's: what comes ends the
wait, whichever partition it comes to. One that its owner opens meanwhile has to wait for the fetch, and so has any
other request to the broker; while one is under way the next fetch waits no longer than aiokafka says."""

FETCH_SECONDS_MIN: Final = 0.005
"""Fetches of a broker begin no closer together. Under a steady load of single records that makes fewer of them, which
cost the broker and the client more than their records do; a record that comes after a pause does not wait."""

GATHERED_BYTES: Final = 256 * 1024
"""An answer with so much of a partition is followed by the next fetch of it at once."""

T = TypeVar("T")

AskedPartition: TypeAlias = tuple[int, int, int, int]
"""Number, the leader's epoch, offset, most bytes."""
FetchedPartition: TypeAlias = tuple[int, int, int, int, list[tuple[int, int]], bytes]
"""Number, error, high watermark, last stable offset, aborted transactions as (producer, first offset), records."""

_NONE: Final = -1
_NO_TAGS: Final = b"\0"
_CONSUMER: Final = -1
_EPOCH_MAX: Final = 2**31 - 1


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


class NamedPartition(NamedTuple):
    """What is asked of a partition, and of which log."""

    log: Leadership
    asked: AskedPartition


class LogPartition(NamedTuple):
    """A partition of a topic, by the topic's id."""

    topic_id: UUID
    partition: int


class SessionFetch(NamedTuple):
    """What a fetch says of its session: which it is, and what has changed of what is asked for."""

    session_id: int
    session_epoch: int
    asked: Sequence[tuple[LogPartition, AskedPartition]]
    forgotten: Sequence[LogPartition]


class FetchSession:
    """What one broker keeps of a client's fetches, so that the next one names changes alone. One fetch at a time."""

    def __init__(self) -> None:
        self._id = 0
        self._epoch = 0
        """That of the next fetch; 0 begins a session, and ends the one before."""
        self._known: dict[LogPartition, AskedPartition] = {}

    def next_fetch(self, wanted: Mapping[LogPartition, AskedPartition]) -> SessionFetch:
        """Return the fetch that asks for these partitions and no others. `go_on` or `begin_again` is to follow."""
        known = self._known if self._epoch else {}
        asked = [(each, partition) for each, partition in wanted.items() if known.get(each) != partition]
        forgotten = [each for each in known if each not in wanted]
        self._known = dict(wanted)
        return SessionFetch(self._id, self._epoch, asked, forgotten)

    def go_on(self, session_id: int) -> None:
        """Note an answer, and the session that it names: none where the broker keeps no more of them."""
        self._id, self._epoch = session_id, self._epoch % _EPOCH_MAX + 1 if session_id else 0

    def begin_again(self) -> None:
        """Name everything in the next fetch: what the broker knows is not certain."""
        self._epoch = 0


class IdentifiedFetchRequest(Request[FetchRequest_v13]):  # type: ignore[misc]
    """A fetch of aiokafka's, of those partitions whose log is known. Kafka 3.1 or later."""

    API_KEY = 1

    def __init__(self, fetch: FetchRequest, session: SessionFetch, max_wait_ms: int) -> None:
        self._fetch = fetch
        self._session = session
        self._max_wait_ms = max_wait_ms

    def build(self, request_struct_class: type[FetchRequest_v13]) -> FetchRequest_v13:
        fetch, session = self._fetch, self._session
        forgotten = _by_topic((each.topic_id, each.partition) for each in session.forgotten)
        return request_struct_class(
            _CONSUMER, self._max_wait_ms, fetch._min_bytes, fetch._max_bytes, fetch._isolation_level,
            session.session_id, session.session_epoch,
            [(topic_id, asked, {}) for topic_id, asked in
             _by_topic((each.topic_id, partition) for each, partition in session.asked).items()],
            [(topic_id, numbers, {}) for topic_id, numbers in forgotten.items()],
            "", {},
        )  # fmt: skip


def _by_topic(pairs: Iterable[tuple[UUID, T]]) -> dict[UUID, list[T]]:
    found: defaultdict[UUID, list[T]] = defaultdict(list)
    for topic_id, each in pairs:
        found[topic_id].append(each)
    return found


class NamedFetch:
    """The answer to a fetch, by topics' names and in the layout of Fetch 4, as aiokafka's fetcher reads it."""

    API_VERSION: Final = 4

    def __init__(self, topics: Sequence[tuple[str, Sequence[FetchedPartition]]]) -> None:
        self.topics = topics


class IdentifiedFetches:
    """What one client fetches: partitions whose log was named, and no others.

    A partition is named once its owner knows the log; what was fetched of it before, or of another log, is dropped.
    """

    def __init__(
        self,
        client: AIOKafkaClient,
        assignment: Callable[[], Collection[TopicPartition]],
        gathered_seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Change the client, which has not been started yet: fetches go through here from now on.

        `gathered_seconds`, by topic: how long records are left to gather after a fetch that brought few of them.
        """
        self._send = client.send
        self._cluster = client.cluster
        self._assignment = assignment
        self._gathered_seconds = gathered_seconds or {}
        self._sessions: defaultdict[int, FetchSession] = defaultdict(FetchSession)
        self._other_requests: Counter[int] = Counter()
        """How many are under way to each broker."""
        self._logs: dict[TopicPartition, Leadership] = {}
        self._refused: set[TopicPartition] = set()
        self._not_before: dict[TopicPartition, float] = {}
        self._next_fetch_at: defaultdict[int, float] = defaultdict(float)
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
            return await self._send_other(node_id, request, **options)
        await self._space_out(node_id)
        wanted = self._named(request)
        if not wanted:
            await asyncio.sleep(request._max_wait_ms / 1000)
            return NamedFetch(())
        answer = await self._fetch(node_id, request, wanted, **options)
        if answer.error_code in SESSION_OVER:
            answer = await self._fetch(node_id, request, wanted, **options)
        if answer.error_code:
            raise for_code(answer.error_code)
        return self._by_name(answer, wanted)

    async def _space_out(self, node_id: int) -> None:
        """Wait until a broker may get its next fetch."""
        loop = asyncio.get_running_loop()
        if (wait_seconds := self._next_fetch_at[node_id] - loop.time()) > 0:
            await asyncio.sleep(wait_seconds)
        self._next_fetch_at[node_id] = loop.time() + FETCH_SECONDS_MIN

    async def _send_other(self, node_id: int, request: Any, **options: Any) -> Any:
        """Send a request that is no fetch: a broker does not look at it before it has answered the fetch before it."""
        self._other_requests[node_id] += 1
        try:
            return await self._send(node_id, request, **options)
        finally:
            self._other_requests[node_id] -= 1

    async def _fetch(
        self, node_id: int, request: FetchRequest, wanted: Mapping[TopicPartition, NamedPartition], **options: Any
    ) -> FetchResponse_v13:
        """Fetch in the session of a broker, which begins again after whatever goes wrong."""
        session = self._sessions[node_id]
        max_wait_ms = request._max_wait_ms
        if not self._other_requests[node_id] and self._is_all(node_id, wanted):
            max_wait_ms = max(max_wait_ms, QUIET_WAIT_MS)
        named = IdentifiedFetchRequest(
            request,
            session.next_fetch(
                {LogPartition(log.topic_id, each.partition): asked for each, (log, asked) in wanted.items()}
            ),
            max_wait_ms,
        )
        try:
            answer: FetchResponse_v13 = await self._send(node_id, named, **options)
        except BaseException:  # cancelled, too: the broker may have it, or not
            session.begin_again()
            raise
        if answer.error_code:
            session.begin_again()
        else:
            session.go_on(answer.session_id)
        return answer

    def _is_all(self, node_id: int, wanted: Collection[TopicPartition]) -> bool:
        """Return whether a fetch asks a broker for all that the consumer has there, but for what is left to gather."""
        return not any(
            each not in wanted
            and each.topic not in self._gathered_seconds
            and self._cluster.leader_for_partition(each) == node_id
            for each in self._assignment()
        )

    def _named(self, request: FetchRequest) -> dict[TopicPartition, NamedPartition]:
        """Return what is fetched now of what aiokafka asks for, with the logs."""
        now = asyncio.get_running_loop().time()
        wanted: dict[TopicPartition, NamedPartition] = {}
        for name, partitions in request.topics:
            for number, offset, max_bytes in partitions:
                each = TopicPartition(name, number)
                log = self._logs.get(each)
                if log is not None and self._not_before.get(each, 0.0) <= now:
                    wanted[each] = NamedPartition(log, (number, log.leader_epoch, offset, max_bytes))
        return wanted

    def _by_name(self, answer: FetchResponse_v13, wanted: Mapping[TopicPartition, NamedPartition]) -> NamedFetch:
        names = {(log.topic_id, each.partition): each for each, (log, _) in wanted.items()}
        topics = []
        for topic_id, partitions, _ in answer.topics:
            for fetched in partitions:
                number, error, *_, records = fetched
                partition = names.get((topic_id, number))
                if partition is None or self._logs.get(partition) != wanted[partition].log:
                    continue
                if error in REFUSALS:
                    self._leave(partition, REFUSED_SECONDS)
                    self._refused.add(partition)
                    continue
                if partition.topic in self._gathered_seconds and 0 < len(records) < GATHERED_BYTES:
                    self._leave(partition, self._gathered_seconds[partition.topic])
                topics.append((partition.topic, [fetched]))
        return NamedFetch(topics)

    def _leave(self, partition: TopicPartition, seconds: float) -> None:
        """Fetch nothing of a partition for a while."""
        self._not_before[partition] = asyncio.get_running_loop().time() + seconds
