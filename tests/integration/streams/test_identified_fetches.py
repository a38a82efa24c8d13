"""Fetches that name their log, against a real broker: records of that log, and of no other."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import pytest_asyncio
from aiokafka.structs import TopicPartition

from runtime.settings import Settings
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer
from streams.kafka.identified_fetches import FetchSession
from streams.topics import Topic, admin, apply
from streams.watermarks import Leadership
from tests.support.raw_records import RawRecord, append_raw
from tests.support.waiting import wait_until_async


@pytest_asyncio.fixture
async def topic(settings: Settings) -> AsyncIterator[Topic]:
    """A topic of two partitions with a record in each."""
    made = Topic(f"test.{secrets.token_hex(4)}.named", "x", key="x", partitions=2)
    await apply(settings, catalogue=[made])
    for number in range(2):
        await append_raw(settings, made.name, number, [RawRecord(b"k", b"first")])
    yield made
    async with admin(settings) as client:
        await client.delete_topics([made.name])


@asynccontextmanager
async def consumer_of(settings: Settings, *partitions: TopicPartition) -> AsyncIterator[RepairedConsumer]:
    """Yield a consumer that has been assigned these partitions, none of whose logs was named."""
    consumer = make_consumer(
        settings, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=25, max_poll_records=100
    )
    consumer.identify_fetches()
    await consumer.start()
    try:
        consumer.assign(list(partitions))
        yield consumer
    finally:
        await consumer.stop()


async def read(consumer: RepairedConsumer, *partitions: TopicPartition) -> dict[int, list[bytes | None]]:
    """Return the values of one fetch of each partition, or nothing once some fetches have brought nothing."""
    found: dict[int, list[bytes | None]] = {}
    for _ in range(20):
        fetched = await consumer.fetch_columns(partitions, 0.05)
        for partition, columns in fetched.items():
            found.setdefault(partition.partition, []).extend(columns.values)
        if len(found) == len(partitions):
            break
    return found


async def leadership_of(consumer: RepairedConsumer, partition: TopicPartition) -> Leadership:
    return (await consumer.watermarks(partition)).leadership


async def test_only_what_was_named_is_fetched(settings: Settings, topic: Topic) -> None:
    """A partition whose log its owner does not know yet brings nothing, and holds up no other."""
    first, second = (TopicPartition(topic.name, number) for number in range(2))
    async with consumer_of(settings, first, second) as consumer:
        assert await read(consumer, first, second) == {}
        consumer.name_log(second, await leadership_of(consumer, second))
        assert await read(consumer, first, second) == {1: [b"first"]}
        consumer.name_log(first, await leadership_of(consumer, first))
        await append_raw(settings, topic.name, 1, [RawRecord(b"k", b"next")])
        assert await read(consumer, first, second) == {0: [b"first"], 1: [b"next"]}
        assert consumer.take_refused([first, second]) == []


async def test_another_epoch_is_refused(settings: Settings, topic: Topic) -> None:
    """Again and again, until its owner names the leader's own; others are fetched meanwhile."""
    first, second = (TopicPartition(topic.name, number) for number in range(2))
    async with consumer_of(settings, first, second) as consumer:
        current = await leadership_of(consumer, first)
        consumer.name_log(first, Leadership(current.topic_id, current.leader_epoch + 1))
        consumer.name_log(second, await leadership_of(consumer, second))
        assert await read(consumer, first, second) == {1: [b"first"]}
        assert consumer.take_refused([second]) == []
        assert consumer.take_refused([first, second]) == [first]

        async def refused_again() -> bool:
            assert await consumer.fetch_columns([first], 0.05) == {}
            return consumer.take_refused([first]) == [first]

        await wait_until_async(refused_again, "it is asked for records again")
        consumer.name_log(first, current)
        assert await read(consumer, first) == {0: [b"first"]}


async def test_a_topic_that_was_made_again_is_refused(settings: Settings, topic: Topic) -> None:
    """Its records are at the same offsets, and none of them comes."""
    partition = TopicPartition(topic.name, 0)
    async with consumer_of(settings, partition) as consumer:
        named = await leadership_of(consumer, partition)
        async with admin(settings) as client:
            await client.delete_topics([topic.name])
        await apply(settings, catalogue=[topic])
        await append_raw(settings, topic.name, 0, [RawRecord(b"k", b"other")])
        consumer.name_log(partition, named)
        assert await read(consumer, partition) == {}
        assert consumer.take_refused([partition]) == [partition]
        again = (await consumer.leaderships([partition], 60))[partition]
        assert again.topic_id != named.topic_id
        consumer.name_log(partition, again)
        assert await read(consumer, partition) == {0: [b"other"]}


async def test_a_log_that_nobody_has_is_refused(settings: Settings, topic: Topic) -> None:
    """Such as that of a topic which was deleted."""
    partition = TopicPartition(topic.name, 1)
    async with consumer_of(settings, partition) as consumer:
        consumer.name_log(partition, Leadership(uuid4(), 0))
        assert await read(consumer, partition) == {}
        assert consumer.take_refused([partition]) == [partition]


async def test_a_session_brings_what_comes(settings: Settings, topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of partitions that the fetch does not name, too; and where its broker knows no such session."""
    first, second = (TopicPartition(topic.name, number) for number in range(2))
    go_on, told = FetchSession.go_on, list[int]()

    def go_on_in_another(session: FetchSession, session_id: int) -> None:
        told.append(session_id)
        go_on(session, session_id + 1)

    async with consumer_of(settings, first, second) as consumer:
        for each in (first, second):
            consumer.name_log(each, await leadership_of(consumer, each))
        assert await read_all(consumer, first, second) == {0: [b"first"], 1: [b"first"]}
        for values in ((b"a", b"b"), (b"c", b"d")):
            for number, value in enumerate(values):
                await append_raw(settings, topic.name, number, [RawRecord(b"k", value)])
            assert await read_all(consumer, first, second) == {0: [values[0]], 1: [values[1]]}
            monkeypatch.setattr(FetchSession, "go_on", go_on_in_another)
    assert len(set(told)) > 1
    assert 0 not in told


async def read_all(consumer: RepairedConsumer, *partitions: TopicPartition) -> dict[int, list[bytes | None]]:
    """Return the values of fetches until each partition has some."""
    found: dict[int, list[bytes | None]] = {}

    async def complete() -> bool:
        for partition, columns in (await consumer.fetch_columns(partitions, 0.05)).items():
            found.setdefault(partition.partition, []).extend(columns.values)
        return len(found) == len(partitions)

    await wait_until_async(complete, "each partition has brought a record")
    return found
