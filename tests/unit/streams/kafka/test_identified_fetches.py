"""Fetches that name their log, byte for byte, and what becomes of an answer; without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, UnknownError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import CompactArray, CompactBytes, Int16, Int32, Int64, Schema, TaggedFields
from aiokafka.structs import TopicPartition

from streams.kafka.identified_fetches import (
    FENCED_LEADER_EPOCH,
    INCONSISTENT_TOPIC_ID,
    REFUSED_SECONDS,
    UNKNOWN_LEADER_EPOCH,
    UNKNOWN_TOPIC_ID,
    FetchedPartition,
    FetchRequest_v13,
    FetchResponse_v13,
    IdentifiedFetches,
    IdentifiedFetchRequest,
    NamedFetch,
)
from streams.kafka.topic_ids import Uuid
from streams.watermarks import Leadership

FIRST, SECOND = TopicPartition("genesis.events", 0), TopicPartition("genesis.events", 1)
LOG = Leadership(UUID(int=7), 3)

ASKED = Schema(
    ("partition", Int32),
    ("current_leader_epoch", Int32),
    ("fetch_offset", Int64),
    ("last_fetched_epoch", Int32),
    ("log_start_offset", Int64),
    ("max_bytes", Int32),
    ("tags", TaggedFields),
)
ANSWERED = Schema(
    ("throttle_time_ms", Int32),
    ("error_code", Int16),
    ("session_id", Int32),
    (
        "topics",
        CompactArray(
            ("topic_id", Uuid),
            (
                "partitions",
                CompactArray(
                    ("partition", Int32),
                    ("error_code", Int16),
                    ("high_watermark", Int64),
                    ("last_stable_offset", Int64),
                    ("log_start_offset", Int64),
                    ("aborted", CompactArray(("producer", Int64), ("first", Int64), ("tags", TaggedFields))),
                    ("preferred_read_replica", Int32),
                    ("records", CompactBytes),
                    ("tags", TaggedFields),
                ),
            ),
            ("tags", TaggedFields),
        ),
    ),
    ("tags", TaggedFields),
)
"""The answer by its schema, field by field."""


def fetch_of(*partitions: TopicPartition) -> FetchRequest:
    topics = {each.topic: [(other.partition, 5, 100) for other in partitions] for each in partitions}
    return FetchRequest(25, 1, 1000, 1, list(topics.items()))


def test_a_request_names_topic_and_epoch() -> None:
    """As Kafka's schema has it; partitions whose log is not known are left out."""
    logs = {FIRST: LOG, TopicPartition("other", 300): Leadership(UUID(int=8), 1)}
    request = IdentifiedFetchRequest(
        FetchRequest(25, 1, 1000, 1, [("genesis.events", [(0, 5, 100), (1, 6, 100)]), ("other", [(300, 7, 200)])]), logs
    ).build(FetchRequest_v13)
    topics = CompactArray(("topic_id", Uuid), ("partitions", CompactArray(ASKED)), ("tags", TaggedFields)).encode(
        [
            (UUID(int=7), [(0, 3, 5, -1, -1, 100, {})], {}),
            (UUID(int=8), [(300, 1, 7, -1, -1, 200, {})], {}),
        ]
    )
    head = Schema(*[("x", Int32)] * 4).encode((-1, 25, 1, 1000)) + b"\1" + Schema(*[("x", Int32)] * 2).encode((0, -1))
    assert request.encode() == head + topics + b"\1" + b"\1" + b"\0"  # no forgotten topics, no rack, no tags


@pytest.mark.parametrize("aborted", [None, [], [(9, 3), (8, 2)]], ids=["null", "none", "two"])
@pytest.mark.parametrize("records", [None, b"", b"x" * 300], ids=["null", "empty", "some"])
def test_an_answer_is_read_as_its_schema_says(aborted: Sequence[tuple[int, int]] | None, records: bytes | None) -> None:
    """Null and empty are the same to who reads it; tags that are not known are passed over."""
    transactions = None if aborted is None else [(*each, {}) for each in aborted]
    partitions = [(number, 0, 11, 10, 2, transactions, -1, records, {}) for number in range(200)]
    content = ANSWERED.encode((0, 0, 0, [(UUID(int=7), partitions, {}), (UUID(int=8), [], {})], {}))
    answer = FetchResponse_v13.decode(BytesIO(content))
    read = [(number, 0, 11, 10, list(aborted or ()), records or b"") for number in range(200)]
    assert answer.topics == [(UUID(int=7), read, {}), (UUID(int=8), [], {})]


class Answers:
    """A client that is given an answer for each request; the names that are given meanwhile come first."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answer: Any = None
        self.meanwhile: Any = lambda: None

    async def send(self, _node_id: int, request: Any, **_: Any) -> Any:
        self.asked.append(request)
        self.meanwhile()
        return self.answer


def fetching(*partitions: FetchedPartition, error: int = 0) -> tuple[Answers, IdentifiedFetches]:
    """Return a client that answers with these partitions, and fetches through it, with both logs named."""
    client = Answers()
    client.answer = SimpleNamespace(error_code=error, topics=[(LOG.topic_id, list(partitions), {})])
    fetches = IdentifiedFetches(cast(AIOKafkaClient, client))
    for each in (FIRST, SECOND):
        fetches.name(each, LOG)
    return client, fetches


def fetched(partition: TopicPartition, error: int = 0) -> FetchedPartition:
    return partition.partition, error, 9, 9, [], b"records"


async def test_an_answer_is_given_by_names() -> None:
    """In the layout that aiokafka's fetcher reads."""
    client, fetches = fetching(fetched(FIRST), fetched(SECOND, 6))
    answer = await cast(Any, client).send(1, fetch_of(FIRST, SECOND))
    assert isinstance(answer, NamedFetch)
    assert answer.topics == [("genesis.events", [fetched(FIRST)]), ("genesis.events", [fetched(SECOND, 6)])]
    assert fetches.take_refused([FIRST, SECOND]) == []


@pytest.mark.parametrize("error", [FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID])
async def test_a_refused_log_is_told_and_left_alone_for_a_while(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is answered; naming the log again ends the pause."""
    client, fetches = fetching(fetched(FIRST, error), fetched(SECOND))
    answer = await cast(Any, client).send(1, fetch_of(FIRST, SECOND))
    assert answer.topics == [("genesis.events", [fetched(SECOND)])]
    assert fetches._named(fetch_of(FIRST, SECOND)) == {SECOND: LOG}
    assert fetches._not_before.keys() == {FIRST}
    assert REFUSED_SECONDS > 0
    fetches.name(FIRST, LOG)
    assert fetches._named(fetch_of(FIRST, SECOND)) == {FIRST: LOG, SECOND: LOG}
    assert fetches.take_refused([FIRST]) == [FIRST]


async def test_what_was_asked_of_another_log_is_dropped() -> None:
    """The partition was opened again while the fetch was on its way."""
    client, fetches = fetching(fetched(FIRST), fetched(SECOND, UNKNOWN_TOPIC_ID))
    client.meanwhile = lambda: [fetches.name(each, Leadership(LOG.topic_id, 4)) for each in (FIRST, SECOND)]
    assert (await cast(Any, client).send(1, fetch_of(FIRST, SECOND))).topics == []
    assert fetches.take_refused([FIRST, SECOND]) == []


async def test_nothing_is_asked_where_no_log_is_known() -> None:
    """The answer has nothing, after the time that a broker would have waited."""
    client, _ = fetching()
    assert (await cast(Any, client).send(1, fetch_of(TopicPartition("other", 0)))).topics == ()
    assert client.asked == []


async def test_other_requests_go_as_they_are() -> None:
    """And the answer that is an error as a whole is raised."""
    client, _ = fetching(error=UnknownError.errno)
    request = object()
    assert await cast(Any, client).send(1, request) is client.answer
    assert client.asked == [request]
    with pytest.raises(KafkaError):
        await cast(Any, client).send(1, fetch_of(FIRST))
