"""The recorder in a worker, on real Kafka: all partitions, taken over by another worker, nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import pytest_asyncio
from confluent_kafka import Producer

from deliveries.state.recorder import build_recorder
from devstack import sql
from runtime.settings import Settings
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from streams.agents import Worker
from tests.conftest import Database, MakeTopic
from tests.support.made_attempts import attempted
from tests.support.waiting import wait_until_async

StartRecorder = Callable[[str], Awaitable[Worker]]


@pytest_asyncio.fixture
async def start_recorder(settings: Settings) -> AsyncIterator[StartRecorder]:
    """Starts recorders in this process; they stop when the test ends."""
    running: list[Worker] = []

    async def start(topic: str) -> Worker:
        worker = Worker(settings, [topic], build_recorder(settings))
        running.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in running:
        await worker.stop()


def write(settings: Settings, topic: str, records: Iterable[DeliveryAttempted | bytes]) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka_address()})
    for number, record in enumerate(records):
        value = record if isinstance(record, bytes) else codec.encode(record)
        producer.produce(topic, value=value, partition=number % settings.topic_partitions)
    assert producer.flush() == 0


async def test_a_recorder_goes_on_where_another_ended(
    settings: Settings, database: Database, make_topic: MakeTopic, start_recorder: StartRecorder
) -> None:
    """What is on the topic is recorded, what comes later too, and a second worker repeats nothing of it."""
    topic = await make_topic(family=ATTEMPTS_TOPIC)

    async def recorded(count: int) -> None:
        query = "SELECT count(*) FROM webhook_attempts"
        await wait_until_async(lambda: sql.value(database.operator_url, query) == count, f"{count} attempts")

    write(settings, topic, [b"no record", *map(attempted, range(1, 500))])
    first = await start_recorder(topic)
    await recorded(499)
    write(settings, topic, map(attempted, range(500, 600)))
    await recorded(599)
    await first.stop()
    write(settings, topic, map(attempted, range(600, 700)))
    await start_recorder(topic)
    await recorded(699)
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_deliveries") == 699
    at = "SELECT sum(next_offset) FROM delivery_checkpoints WHERE consumer = 'recorder'"
    await wait_until_async(lambda: sql.value(database.operator_url, at) == 700, "the checkpoints are at the end")
