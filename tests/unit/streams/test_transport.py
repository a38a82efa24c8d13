"""The transport's decisions about a fetch: whose records they are, and what an offset out of range means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

import pytest
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord, TopicPartition

from streams.errors import OwnershipLost, RecordUnreadable
from streams.kafka.consumer import RepairedConsumer
from streams.open_partition import OpenPartition
from streams.transport import RecordBatchThread

FIRST, SECOND = TopicPartition("genesis.events", 0), TopicPartition("genesis.events", 1)
TOPIC_ID, OTHER_ID = UUID(int=7), UUID(int=8)


class Consumer:
    """A consumer that answers with these topic ids, and whose fetches have these records or fail with this error."""

    fetching_closed = False

    def __init__(
        self,
        *,
        ids: Mapping[str, UUID] | Exception = MappingProxyType({}),
        fetch: dict[TopicPartition, list[Any]] | Exception = KafkaError(),  # noqa: B008 (never raised by default)
        failing: TopicPartition | None = None,
    ) -> None:
        self._ids = ids
        self._fetch = fetch
        self._failing = failing

    def poll_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def topic_ids(self, _partitions: Iterable[TopicPartition]) -> Mapping[str, UUID]:
        if isinstance(self._ids, Exception):
            raise self._ids
        return self._ids

    async def fetch_raw(self, _partitions: object, _timeout_seconds: float) -> dict[TopicPartition, list[Any]]:
        if isinstance(self._fetch, Exception):
            raise self._fetch
        return self._fetch

    def failing_partition(self, _among: object) -> TopicPartition | None:
        return self._failing


class FetchState:
    """aiokafka's state of a partition."""

    def __init__(self, position: int) -> None:
        self.position = position


class Thread(RecordBatchThread):
    """The thread's decisions alone, without the thread."""

    def __init__(self, consumer: Consumer, opened: dict[TopicPartition, OpenPartition] | None = None) -> None:
        self._ours = consumer
        self._opened = opened or {}
        self.sought: list[TopicPartition] = []

    def _current(self) -> dict[TopicPartition, OpenPartition]:
        return self._opened

    def _repaired_consumer(self) -> RepairedConsumer:
        return cast(RepairedConsumer, self._ours)

    def _read_again(self, opened: Mapping[TopicPartition, OpenPartition]) -> None:
        self.sought += opened


def opened_at(*positions: int) -> dict[TopicPartition, OpenPartition]:
    return {
        tp: OpenPartition(1, position, None, TOPIC_ID) for tp, position in zip((FIRST, SECOND), positions, strict=False)
    }


@pytest.mark.parametrize("same", [True, False])
async def test_a_fetch_is_delivered_where_the_topic_is_the_same(same: bool) -> None:
    """Otherwise nothing is, the position stays, and the partitions are read again from there."""
    opened = {FIRST: OpenPartition(1, 5, FetchState(6), TOPIC_ID)}
    record = ConsumerRecord(FIRST.topic, 0, 5, 1, 1, b"k", b"v", None, 1, 1, ())
    consumer = Consumer(ids={FIRST.topic: TOPIC_ID if same else OTHER_ID}, fetch={FIRST: [record]})
    thread = Thread(consumer, opened)

    batches = await thread._fetch_batches()

    assert [(batch.fetched_from, batch.next_offset, batch.values) for batch in batches] == [(5, 6, [b"v"])] * same
    assert opened[FIRST].position == 5 + same
    assert thread.sought == [FIRST] * (not same)


async def test_records_of_the_same_topic_are_delivered() -> None:
    """Its id is the one that the partitions were acquired on."""
    opened = opened_at(5, 6)
    assert await Thread(Consumer(ids={FIRST.topic: TOPIC_ID}))._are_same_topics(opened, [FIRST])
    assert all(state.stop_reason is None for state in opened.values())


async def test_records_of_a_topic_that_was_made_again_are_not_delivered() -> None:
    """All its partitions stop; their owners then find the other id."""
    opened = opened_at(5, 6)
    assert not await Thread(Consumer(ids={FIRST.topic: OTHER_ID}))._are_same_topics(opened, [FIRST])
    assert {type(state.stop_reason) for state in opened.values()} == {OwnershipLost}


@pytest.mark.parametrize("ids", [{}, KafkaError(), TimeoutError()], ids=["deleted", "error", "timeout"])
async def test_records_of_an_unidentified_topic_are_fetched_again(ids: Mapping[str, UUID] | Exception) -> None:
    """While no broker tells the topic's id, nothing is delivered and nothing stops."""
    opened = opened_at(5)
    assert not await Thread(Consumer(ids=ids))._are_same_topics(opened, [FIRST])
    assert opened[FIRST].stop_reason is None


async def test_an_offset_out_of_range_stops_the_partition_that_is_there() -> None:
    """Only the one whose position it is: the answer may be to a fetch from before the seek to the checkpoint."""
    opened = opened_at(5, 6)
    error = OffsetOutOfRangeError({FIRST: 5, SECOND: 1_000, TopicPartition("genesis.events", 2): 3})
    thread = Thread(Consumer(fetch=error))
    assert await thread._fetch(cast(RepairedConsumer, thread._ours), opened) is None
    assert isinstance(opened[FIRST].stop_reason, OwnershipLost)
    assert opened[SECOND].stop_reason is None


async def test_a_partition_without_a_committed_hint_is_no_failure() -> None:
    """Its owner has not sought yet."""
    opened = opened_at(5)
    thread = Thread(Consumer(fetch=NoOffsetForPartitionError(FIRST)))
    assert await thread._fetch(cast(RepairedConsumer, thread._ours), opened) is None
    assert opened[FIRST].stop_reason is None


async def test_a_damaged_record_stops_its_partition() -> None:
    """The others are read again from where they were delivered; an error of no partition is raised."""
    opened = opened_at(5, 6)
    thread = Thread(Consumer(fetch=ValueError("damaged"), failing=SECOND))
    assert await thread._fetch(cast(RepairedConsumer, thread._ours), opened) is None
    assert isinstance(opened[SECOND].stop_reason, RecordUnreadable)
    assert opened[FIRST].stop_reason is None
    assert thread.sought == [FIRST, SECOND]
    thread = Thread(Consumer(fetch=ValueError("elsewhere")))
    with pytest.raises(ValueError, match="elsewhere"):
        await thread._fetch(cast(RepairedConsumer, thread._ours), opened)
