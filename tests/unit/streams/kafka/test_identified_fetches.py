"""Fetches that name their log, byte for byte, and what becomes of an answer; without a broker."""

from __future__ import annotations

import asyncio
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
    FETCH_SECONDS_MIN,
    FETCH_SESSION_ID_NOT_FOUND,
    FETCH_SESSION_TOPIC_ID_ERROR,
    GATHERED_BYTES,
    INCONSISTENT_TOPIC_ID,
    INVALID_FETCH_SESSION_EPOCH,
    QUIET_WAIT_MS,
    REFUSED_SECONDS,
    UNKNOWN_LEADER_EPOCH,
    UNKNOWN_TOPIC_ID,
    FetchedPartition,
    FetchRequest_v13,
    FetchResponse_v13,
    FetchSession,
    IdentifiedFetches,
    IdentifiedFetchRequest,
    LogPartition,
    NamedFetch,
    SessionFetch,
)
from streams.kafka.topic_ids import Uuid
from streams.watermarks import Leadership
from tests.support.waiting import wait_until_async

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
    """As Kafka's schema has it: the session, what is asked for, and what is not any more."""
    other = UUID(int=8)
    session = SessionFetch(
        77,
        3,
        [
            (LogPartition(LOG.topic_id, 0), (0, 3, 5, 100)),
            (LogPartition(other, 300), (300, 1, 7, 200)),
            (LogPartition(LOG.topic_id, 1), (1, 3, 6, 100)),
        ],
        [LogPartition(other, 2), LogPartition(other, 4)],
    )
    request = IdentifiedFetchRequest(fetch_of(FIRST), session, 250).build(FetchRequest_v13)
    topics = CompactArray(("topic_id", Uuid), ("partitions", CompactArray(ASKED)), ("tags", TaggedFields)).encode(
        [
            (LOG.topic_id, [(0, 3, 5, -1, -1, 100, {}), (1, 3, 6, -1, -1, 100, {})], {}),
            (other, [(300, 1, 7, -1, -1, 200, {})], {}),
        ]
    )
    forgotten = CompactArray(("topic_id", Uuid), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)).encode(
        [(other, [2, 4], {})]
    )
    head = Schema(*[("x", Int32)] * 4).encode((-1, 250, 1, 1000)) + b"\1" + Schema(*[("x", Int32)] * 2).encode((77, 3))
    assert request.encode() == head + topics + forgotten + b"\1" + b"\0"  # no rack, no tags


def test_a_session_names_what_has_changed() -> None:
    """What is new or at another offset, and what is not asked for any more; everything where it begins again."""
    first, second = LogPartition(LOG.topic_id, 0), LogPartition(LOG.topic_id, 1)
    session = FetchSession()
    both = {first: (0, 3, 5, 100), second: (1, 3, 5, 100)}
    assert session.next_fetch(both) == SessionFetch(0, 0, list(both.items()), [])
    session.go_on(77)
    assert session.next_fetch(both) == SessionFetch(77, 1, [], [])
    session.go_on(77)
    moved = {first: (0, 3, 6, 100)}
    assert session.next_fetch(moved) == SessionFetch(77, 2, list(moved.items()), [second])
    session.begin_again()
    assert session.next_fetch(both) == SessionFetch(77, 0, list(both.items()), [])
    session.go_on(0)
    assert session.next_fetch(both) == SessionFetch(0, 0, list(both.items()), [])
    session.go_on(78)
    session._epoch = 2**31 - 1
    session.go_on(78)
    assert session.next_fetch(both).session_epoch == 1


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
        self.errors: list[int] = []
        """Those of the next answers."""
        self.meanwhile: Any = lambda: None
        self.answer_when: asyncio.Event | None = None
        self.cluster = SimpleNamespace(leader_for_partition=lambda each: 1 if each.partition < 2 else 2)

    async def send(self, _node_id: int, request: Any, **_: Any) -> Any:
        self.asked.append(request)
        self.meanwhile()
        if self.answer_when is not None:
            await self.answer_when.wait()
        if self.errors:
            return SimpleNamespace(error_code=self.errors.pop(0), session_id=0, topics=[])
        return self.answer

    @property
    def built(self) -> list[FetchRequest_v13]:
        """The fetches that were asked."""
        return [each.build(FetchRequest_v13) for each in self.asked]


def fetching(
    *partitions: FetchedPartition, error: int = 0, gathered_seconds: dict[str, float] | None = None
) -> tuple[Answers, IdentifiedFetches]:
    """Return a client that answers with these partitions, and fetches through it, with both logs named.

    Two more partitions are assigned, of another leader and topic.
    """
    client = Answers()
    client.answer = SimpleNamespace(error_code=error, session_id=77, topics=[(LOG.topic_id, list(partitions), {})])
    assigned = [FIRST, SECOND, TopicPartition("genesis.events", 2), TopicPartition("other", 2)]
    fetches = IdentifiedFetches(cast(AIOKafkaClient, client), lambda: assigned, gathered_seconds)
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
    assert fetches._named(fetch_of(FIRST, SECOND)).keys() == {SECOND}
    assert fetches._not_before.keys() == {FIRST}
    assert REFUSED_SECONDS > 0
    fetches.name(FIRST, LOG)
    assert fetches._named(fetch_of(FIRST, SECOND)).keys() == {FIRST, SECOND}
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


async def test_the_next_fetch_of_a_session_names_changes_alone() -> None:
    """Also where one of the two is asked for no more; a fetch of another broker has a session of its own."""
    client, _ = fetching(fetched(FIRST))
    send = cast(Any, client).send
    await send(1, fetch_of(FIRST, SECOND))
    await send(1, fetch_of(FIRST, SECOND))
    await send(1, fetch_of(FIRST))
    await send(2, fetch_of(FIRST))
    first, second, third, other = client.built
    assert (first.session_id, first.session_epoch, len(first.topics[0][1]), first.forgotten_topics) == (0, 0, 2, [])
    assert (second.session_id, second.session_epoch, second.topics, second.forgotten_topics) == (77, 1, [], [])
    assert (third.session_epoch, third.topics, third.forgotten_topics) == (2, [], [(LOG.topic_id, [1], {})])
    assert (other.session_id, other.session_epoch, len(other.topics)) == (0, 0, 1)


@pytest.mark.parametrize(
    "error", [FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH, FETCH_SESSION_TOPIC_ID_ERROR]
)
async def test_a_session_that_the_broker_has_dropped_begins_again_at_once(error: int) -> None:
    """Everything is named again, and its answer is the fetch's; a second such error is the fetch's."""
    client, _ = fetching(fetched(FIRST))
    send = cast(Any, client).send
    await send(1, fetch_of(FIRST, SECOND))
    client.errors = [error]
    assert (await send(1, fetch_of(FIRST, SECOND))).topics == [("genesis.events", [fetched(FIRST)])]
    assert [(each.session_epoch, len(each.topics)) for each in client.built] == [(0, 1), (1, 0), (0, 1)]
    client.errors = [error, error]
    with pytest.raises(KafkaError):
        await send(1, fetch_of(FIRST, SECOND))
    assert (await send(1, fetch_of(FIRST, SECOND))).topics == [("genesis.events", [fetched(FIRST)])]
    assert client.built[-1].session_epoch == 0


async def test_a_session_begins_again_after_a_fetch_that_failed() -> None:
    """Whether the broker had it is not known; a task that was cancelled meanwhile says as little."""
    client, _ = fetching(fetched(FIRST))
    send = cast(Any, client).send
    await send(1, fetch_of(FIRST, SECOND))

    def fail() -> None:
        raise asyncio.CancelledError

    client.meanwhile = fail
    with pytest.raises(asyncio.CancelledError):
        await send(1, fetch_of(FIRST, SECOND))
    client.meanwhile = lambda: None
    await send(1, fetch_of(FIRST, SECOND))
    assert [each.session_epoch for each in client.built] == [0, 1, 0]


async def test_a_fetch_of_everything_waits_longer() -> None:
    """One without a partition that has the same leader does not: what comes there would wait for it."""
    client, _ = fetching()
    send = cast(Any, client).send
    await send(1, fetch_of(FIRST, SECOND))
    await send(1, fetch_of(FIRST))
    assert [each.max_wait_ms for each in client.built] == [QUIET_WAIT_MS, 25]


async def test_a_fetch_does_not_hold_up_other_requests_for_long() -> None:
    """A broker looks at them one by one: while another one is under way there, a fetch waits no longer than asked."""
    client, _ = fetching()
    send, waits = cast(Any, client).send, list[int]()

    async def fetch() -> None:
        await send(1, fetch_of(FIRST, SECOND))
        waits.append(client.asked.pop().build(FetchRequest_v13).max_wait_ms)

    def fails() -> None:
        raise KafkaError

    for node in (1, 2):
        answered = client.answer_when = asyncio.Event()
        other = asyncio.create_task(send(node, object()))
        await wait_until_async(lambda: len(client.asked) == 1, "it is under way")
        client.answer_when = None
        await fetch()
        answered.set()
        await other
        client.asked.clear()
    client.meanwhile = fails
    with pytest.raises(KafkaError):
        await send(1, object())
    client.meanwhile = lambda: None
    await fetch()
    assert waits == [25, QUIET_WAIT_MS, QUIET_WAIT_MS]


async def test_few_records_are_left_to_gather() -> None:
    """Of the topics that were named for it, after an answer that brought few; those who name the log again get all."""
    many = (SECOND.partition, 0, 9, 9, [], b"x" * GATHERED_BYTES)
    client, fetches = fetching(fetched(FIRST), many, gathered_seconds={"genesis.events": 60.0})
    send = cast(Any, client).send
    assert len((await send(1, fetch_of(FIRST, SECOND))).topics) == 2
    assert fetches._named(fetch_of(FIRST, SECOND)).keys() == {SECOND}
    await send(1, fetch_of(FIRST, SECOND))
    assert client.built[-1].max_wait_ms == QUIET_WAIT_MS
    fetches.name(FIRST, LOG)
    assert fetches._named(fetch_of(FIRST, SECOND)).keys() == {FIRST, SECOND}


async def test_an_answer_without_records_gathers_nothing() -> None:
    """The first record after a pause is fetched at once; so are those of other topics."""
    client, fetches = fetching((0, 0, 9, 9, [], b""), gathered_seconds={"genesis.events": 60.0})
    await cast(Any, client).send(1, fetch_of(FIRST))
    assert fetches._named(fetch_of(FIRST)).keys() == {FIRST}
    client, fetches = fetching(fetched(FIRST), gathered_seconds={"other": 60.0})
    await cast(Any, client).send(1, fetch_of(FIRST))
    assert fetches._named(fetch_of(FIRST)).keys() == {FIRST}


async def test_fetches_of_a_broker_are_spaced_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes after a pause does not wait."""
    client, _ = fetching(fetched(FIRST))
    loop, waited = asyncio.get_running_loop(), list[float]()
    now = [100.0]

    async def sleep(seconds: float) -> None:
        waited.append(round(seconds, 6))
        now[0] += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(loop, "time", lambda: now[0])
    send = cast(Any, client).send
    await send(1, fetch_of(FIRST, SECOND))
    assert waited == []
    now[0] += 0.001
    await send(2, fetch_of(FIRST))
    assert waited == [], "another broker"
    await send(1, fetch_of(FIRST, SECOND))
    assert waited == [round(FETCH_SECONDS_MIN - 0.001, 6)]
    now[0] += FETCH_SECONDS_MIN
    await send(1, fetch_of(FIRST))
    assert len(waited) == 1
