"""Publishing against a real broker: order, positions, bounds, and what a broken broker means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import NewPartitions

from devstack import processes
from devstack.stack import Stack
from runtime.settings import Settings
from schemas import codec
from schemas.errors import Unencodable
from schemas.events import AgentAvailable, AgentRated, Event, OperationRecorded
from streams.errors import (
    KafkaUnavailable,
    OutcomeUnknown,
    Overloaded,
    PartitionCountChanged,
    PublishRefused,
    RecordTooLarge,
    TopicMissing,
)
from streams.partitioning import partition_of
from streams.producer import EventProducer, Limits
from streams.topics import EVENTS_TOPIC, admin, apply
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async
from tests.support.webhooks import read_all, read_at

if TYPE_CHECKING:
    from tests.conftest import MakeTopic


def available(agent_id: UUID | None = None, available: bool = True) -> AgentAvailable:
    return AgentAvailable(
        event_id=uuid4(), agent_id=agent_id or uuid4(), occurred_at=datetime.now(UTC), available=available
    )


def producer_for(settings: Settings, topic: str, **limits: float) -> EventProducer:
    made = msgspec.convert(limits, Limits)
    return EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=topic, limits=made)


async def test_a_published_event_is_where_it_says(settings: Settings, topic: str) -> None:
    """The position returned holds the event, with its key, headers and trace."""
    event = available()
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with producer_for(settings, topic) as producer:
        position = await producer.publish(event, source="urn:test", traceparent=traceparent)
    received = await read_at(settings, position)
    assert received.event == event
    assert received.headers == tuple(codec.headers(event, "urn:test", traceparent))
    assert position.partition == partition_of(codec.key(event), 4)


@pytest.mark.parametrize("part", ["metadata", "sender"])
async def test_a_broken_connection_is_renewed(settings: Settings, topic: str, part: str) -> None:
    """Where a background task of the client dies, publishing goes on over a new connection, not never."""
    async with producer_for(settings, topic) as producer:
        before = producer._connected
        assert before is not None

        async def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the handler is closed")

        if part == "metadata":
            before._kafka.client._metadata_update = broken
            before._kafka.client.force_metadata_update()
        else:
            before._kafka._sender._maybe_wait_for_pid = broken
            before._kafka._message_accumulator.drain_by_nodes = broken
            with contextlib.suppress(OutcomeUnknown, KafkaUnavailable):
                await producer.publish(available(), source="urn:test")

        async def renewed() -> bool:
            return producer._connected not in (None, before)

        await wait_until_async(renewed, "another connection")
        assert (await producer.publish(available(), source="urn:test")).offset >= 0


async def test_concurrent_publishes_share_batches_and_keep_their_order(settings: Settings, topic: str) -> None:
    """A thousand publishes at once ride few batches, and each entity's events stay in order."""
    agents = [uuid4() for _ in range(10)]
    events = [available(agents[number % 10], bool(number % 3)) for number in range(1000)]
    async with producer_for(settings, topic) as producer:
        positions = await asyncio.gather(*(producer.publish(event, source="t") for event in events))
    assert len(set(positions)) == 1000
    stored = {received.position: received.event for received in await read_all(settings, topic)}
    assert [stored[position] for position in positions] == events
    for agent in agents:
        offsets = [
            position.offset for position, event in zip(positions, events, strict=True) if event.agent_id == agent
        ]
        assert offsets == sorted(offsets)


async def test_many_are_published_in_order_within_the_bounds(settings: Settings, topic: str) -> None:
    """publish_many waits for room instead of failing, from plain and asynchronous iterables alike."""
    agent = uuid4()
    events = [available(agent) for _ in range(500)]

    async def asynchronous() -> AsyncIterator[Event]:
        for event in events:
            yield event

    async with producer_for(settings, topic, in_flight_records=50) as producer:
        first = await producer.publish_many(events, source="t")
        second = await producer.publish_many(asynchronous(), source="t")
    assert [position.offset for position in first + second] == list(range(1000))


async def test_records_are_timed_by_the_broker_and_compressed(settings: Settings) -> None:
    """The real topic stamps records itself."""
    await apply(settings)
    async with EventProducer(settings) as producer:
        position = await producer.publish(available(), source="t")
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await consumer.start()
    try:
        from aiokafka.structs import TopicPartition

        partition = TopicPartition(position.topic, position.partition)
        consumer.assign([partition])
        consumer.seek(partition, position.offset)
        record = await asyncio.wait_for(consumer.getone(), DEADLINE_SECONDS)
    finally:
        await consumer.stop()
    assert (record.offset, record.timestamp_type) == (position.offset, 1)


async def test_operations_go_to_their_own_topic(settings: Settings) -> None:
    """An operation is published to plant.operations."""
    await apply(settings)
    act = OperationRecorded(
        event_id=uuid4(),
        operation_id=uuid4(),
        occurred_at=datetime.now(UTC),
        actor="a",
        action="b",
        target="c",
        reason="d",
    )
    async with EventProducer(settings) as producer:
        position = await producer.publish(act, source="t")
    assert position.topic == "plant.operations"
    assert (await read_at(settings, position)).event == act


async def test_events_that_break_their_limits_are_refused(settings: Settings, topic: str) -> None:
    """What would be poison is not sent."""
    wrong = AgentRated(event_id=uuid4(), agent_id=uuid4(), occurred_at=datetime.now(UTC), rater_id=uuid4(), rating=6)
    async with producer_for(settings, topic) as producer:
        with pytest.raises(Unencodable):
            await producer.publish(wrong, source="t")
    assert await read_all(settings, topic) == []


async def test_records_beyond_the_limit_are_refused(settings: Settings, topic: str) -> None:
    """A record larger than the topic takes is refused before it is sent."""
    async with producer_for(settings, topic) as producer:
        with pytest.raises(RecordTooLarge):
            await producer.publish(available(), source="x" * 1_100_000)


async def test_what_the_broker_refuses_is_not_written_and_harms_nothing_else(
    settings: Settings, make_topic: MakeTopic
) -> None:
    """After a refusal the producer renews itself and goes on."""
    topic = await make_topic(max_message_bytes="2000")
    async with producer_for(settings, topic, reconnect_backoff_seconds=0.05) as producer:
        with pytest.raises(PublishRefused, match="MessageSizeTooLarge"):
            await producer.publish(available(), source=random.Random(1).randbytes(3000).hex())

        async def again() -> bool:
            try:
                await producer.publish(available(), source="t")
            except KafkaUnavailable:
                return False
            return True

        await wait_until_async(again, "the producer renews itself")
    assert len(await read_all(settings, topic)) == 1


async def test_more_than_may_wait_is_refused_at_once(settings: Settings, topic: str) -> None:
    """Bounds on records and bytes in flight hold, and room comes back."""
    async with producer_for(settings, topic, in_flight_records=2) as producer:
        waiting = [producer.submit(available(), source="t") for _ in range(2)]
        with pytest.raises(Overloaded):
            producer.submit(available(), source="t")
        await producer.await_each(waiting)
        await producer.publish(available(), source="t")
    async with producer_for(settings, topic, in_flight_bytes=100) as producer:
        with pytest.raises(Overloaded):
            await producer.publish(available(), source="t")
        with pytest.raises(Overloaded):
            await producer.publish_many([available()], source="t")


async def test_a_missing_topic_is_named(settings: Settings) -> None:
    """A producer does not start without its topic."""
    with pytest.raises(TopicMissing, match=r"genesis\.events-nowhere"):
        await producer_for(settings, "genesis.events-nowhere").start()


async def test_no_broker_is_unavailable(settings: Settings) -> None:
    """Without a broker it does not start, and publishes say so."""
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    producer = EventProducer(away, limits=Limits(reconnect_backoff_seconds=0.01))
    with pytest.raises(KafkaUnavailable):
        await producer.start()
    producer.start_in_background()
    producer.start_in_background()
    with pytest.raises(KafkaUnavailable):
        producer.submit(available(), source="t")
    with pytest.raises(KafkaUnavailable):
        await producer.ping()
    await producer.stop()


async def test_a_topic_that_grew_is_not_written_to(settings: Settings, topic: str) -> None:
    """Keys would change partition, so a producer that sees growth stops for good."""
    async with producer_for(settings, topic) as producer:
        await producer.publish(available(), source="t")
        async with admin(settings) as client:
            await client.create_partitions({topic: NewPartitions(total_count=9)})
        connected = producer._connected
        assert connected is not None

        async def refused() -> bool:
            await connected._kafka.client.force_metadata_update()
            try:
                await producer.publish(available(), source="t")
            except PartitionCountChanged:
                return True
            return False

        await wait_until_async(refused, "growth is seen")
        with pytest.raises(PartitionCountChanged):
            producer.submit(available(), source="t")


async def test_a_frozen_broker_gives_unknown_outcomes_and_loses_nothing(
    settings: Settings, private_stack: Stack
) -> None:
    """While the broker is frozen nothing is called a success; what was sent arrives once when it wakes."""
    own = msgspec.structs.replace(
        settings, kafka_bootstrap_servers=private_stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    )
    await apply(own)
    process = private_stack.state.kafka
    assert process is not None
    async with producer_for(own, EVENTS_TOPIC, publish_timeout_seconds=0.5) as producer:
        first = producer.submit(available(), source="t")
        await asyncio.wait({first.answer}, timeout=DEADLINE_SECONDS)
        first.position()
        processes.freeze(process)
        try:
            event = available()
            publish = producer.submit(event, source="t")
            with pytest.raises(OutcomeUnknown):
                await producer.await_acknowledgement(publish)
            many = [producer.submit(available(), source="t") for _ in range(1_000)]
            async with asyncio.timeout(DEADLINE_SECONDS):  # not half a second for each
                assert {type(each) for each in await producer.await_each(many)} == {OutcomeUnknown}
            with pytest.raises(KafkaUnavailable):
                await producer.ping()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        await asyncio.wait({publish.answer}, timeout=DEADLINE_SECONDS)
        position = publish.position()
    stored = await read_all(own, EVENTS_TOPIC, lambda received: received.event == event)
    assert [received.position for received in stored] == [position]


async def test_a_killed_broker_is_waited_for(settings: Settings, private_stack: Stack) -> None:
    """A publish under way when the broker dies is finished by the broker's successor, once."""
    own = msgspec.structs.replace(
        settings, kafka_bootstrap_servers=private_stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    )
    await apply(own)
    async with producer_for(own, EVENTS_TOPIC, publish_timeout_seconds=DEADLINE_SECONDS) as producer:
        await producer.publish(available(), source="t")
        private_stack.kill_kafka()
        event = available()
        publish = producer.submit(event, source="t")
        await asyncio.to_thread(private_stack.start_kafka)
        position = await producer.await_acknowledgement(publish)
    stored = await read_all(own, EVENTS_TOPIC, lambda received: received.event == event)
    assert [received.position for received in stored] == [position]


async def test_stopping_while_the_broker_is_frozen_ends_soon(settings: Settings, private_stack: Stack) -> None:
    """A producer stops within its time; what was not acknowledged has an unknown outcome."""
    own = msgspec.structs.replace(
        settings, kafka_bootstrap_servers=private_stack.environ["PLANT_KAFKA_BOOTSTRAP_SERVERS"]
    )
    await apply(own)
    process = private_stack.state.kafka
    assert process is not None
    producer = producer_for(own, EVENTS_TOPIC, publish_timeout_seconds=0.3)
    await producer.start()
    processes.freeze(process)
    try:
        publish = producer.submit(available(), source="t")
        await asyncio.wait_for(producer.stop(), DEADLINE_SECONDS)
        with pytest.raises(OutcomeUnknown):
            publish.position()
    finally:
        os.kill(process.pid, signal.SIGCONT)
