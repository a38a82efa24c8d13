"""A worker on real Kafka and Postgres: partitions taken, shared, given back, and nothing lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest_asyncio
from conftest import Database, MakeTopic

from benchmarks.load import events, fill
from projections.session import Session
from projections.worker import build_worker
from runtime.settings import Settings
from streams.agents import Worker

DEADLINE_SECONDS = 60
StartWorker = Callable[..., Awaitable[Worker]]


@pytest_asyncio.fixture
async def start_worker(settings: Settings) -> AsyncIterator[StartWorker]:
    """Starts workers in this process; they stop when the test ends."""
    running: list[Worker] = []

    async def start(topic: str, **changes: object) -> Worker:
        worker = build_worker(msgspec.structs.replace(settings, **changes), [topic])
        running.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in running:
        await worker.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most DEADLINE_SECONDS."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.05)


def applied(database: Database) -> int:
    session = Session(database.auditor_url)
    try:
        return int(session.query("SELECT count(*) AS n FROM event_stream WHERE disposition = 'applied'")[0][0])
    finally:
        session.close()


async def test_a_worker_projects_what_is_on_the_topic(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """Events that were there before the worker and events that come later are all applied."""
    fill(settings, topic, events(2000, agents=50))
    await start_worker(topic)
    await until(lambda: applied(database) == 2000)

    fill(settings, topic, events(500, agents=50, seed=2))

    await until(lambda: applied(database) == 2500)


async def test_two_workers_share_the_partitions_and_one_takes_over(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """Partitions move when a worker joins and when one leaves; each event is applied once."""
    fill(settings, topic, events(3000, agents=50))
    first = await start_worker(topic)
    await until(lambda: applied(database) >= 1)
    second = await start_worker(topic)
    await until(lambda: len(second.app.consumer.assignment()) == 2)
    fill(settings, topic, events(3000, agents=50, seed=2))
    await until(lambda: applied(database) == 6000)

    await first.stop()
    fill(settings, topic, events(1000, agents=50, seed=3))

    await until(lambda: applied(database) == 7000)
    assert second.crashed is None
    assert not second.stopped_partitions()


async def test_restarting_goes_on_at_the_checkpoint(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """A worker that comes back reads on where the tables are, whatever Kafka's committed offset says."""
    fill(settings, topic, events(1000, agents=50))
    worker = await start_worker(topic)
    await until(lambda: applied(database) == 1000)
    await worker.stop()
    fill(settings, topic, events(1000, agents=50, seed=2))

    await start_worker(topic, consumer_group=settings.consumer_group + "-other")

    await until(lambda: applied(database) == 2000)


async def test_a_checkpoint_outside_the_log_stops_its_partition_alone(
    settings: Settings, database: Database, make_topic: MakeTopic, start_worker: StartWorker
) -> None:
    """A checkpoint above the log's end is named and stops one partition; the others go on, nothing is reset."""
    topic = await make_topic(2)
    fill(settings, topic, events(100, agents=50))
    worker = await start_worker(topic)
    await until(lambda: applied(database) == 100)
    await worker.stop()
    session = Session(database.writer_url)
    session.execute("UPDATE checkpoints SET next_offset = 1000000 WHERE partition = 0")
    session.close()

    again = await start_worker(topic)
    fill(settings, topic, events(100, agents=50, seed=2))

    await until(lambda: bool(again.stopped_partitions()))
    ((tp, error),) = again.stopped_partitions().items()
    assert (tp.partition, type(error).__name__) == (0, "CheckpointOutOfLog")
    await until(lambda: applied(database) > 100)
