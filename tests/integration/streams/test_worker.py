"""A worker on real Kafka and Postgres: partitions acquired, shared, released, and nothing lost on the way."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from prometheus_client import generate_latest

from devstack.processes import choose_port
from operations.services.worker import PartitionGauges, build_worker, serve_metrics
from projections import engine
from projections.known_ids import OPEN_IDS_BYTES
from projections.log_ranges import LogRanges
from projections.prepared import PreparedBatch, prepare
from projections.session import Session
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas.polars_import import polars as pl
from streams import ownership
from streams.agents import Worker
from streams.kafka.consumer import RepairedConsumer
from streams.kafka.record_columns import RecordColumns
from streams.open_partition import OpenPartition
from streams.transport import RecordBatchFetcher
from tests.conftest import Database, MakeTopic
from tests.support.fetch_faults import fail_fetches
from tests.support.load import events, fill
from tests.support.log_rows import applied
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

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


async def test_a_worker_projects_what_is_on_the_topic(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """Events that were there before the worker and events that come later are all applied."""
    fill(settings, topic, events(2000, agents=50))
    await start_worker(topic)
    await wait_until_async(lambda: applied(database) == 2000, "2,000 events are applied")

    fill(settings, topic, events(500, agents=50, seed=2))

    await wait_until_async(lambda: applied(database) == 2500, "2,500 events are applied")


async def test_two_workers_share_the_partitions_and_one_takes_over(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """Partitions move when a worker joins and when one leaves; each event is applied once."""
    fill(settings, topic, events(3000, agents=50))
    first = await start_worker(topic)
    await wait_until_async(lambda: applied(database) >= 1, "at least 1 events are applied")
    second = await start_worker(topic)
    await wait_until_async(lambda: len(second.app.consumer.assignment()) == 2, "the second has two partitions")
    fill(settings, topic, events(3000, agents=50, seed=2))
    await wait_until_async(lambda: applied(database) == 6000, "6,000 events are applied")

    await first.stop()
    fill(settings, topic, events(1000, agents=50, seed=3))

    await wait_until_async(lambda: applied(database) == 7000, "7,000 events are applied")
    assert second.crashed is None
    assert not second.stopped_partitions()


async def test_a_worker_that_crashes_while_it_joins_leaves_the_group(
    settings: Settings, topic: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stop ends with the join, which asks the app although its services have ended."""
    coordinators: list[GroupCoordinator] = []
    prepare_join = GroupCoordinator._on_join_prepare

    async def crash_before_it_joins(coordinator: GroupCoordinator, previous_assignment: object) -> None:
        consumer = coordinator._subscription.listener._thread.consumer
        coordinators.append(coordinator)
        await consumer.app.crash(ValueError("a defect"))
        await wait_until_async(lambda: not any(each._futures for each in consumer._method_queue._workers), "they end")
        await prepare_join(coordinator, previous_assignment)

    monkeypatch.setattr(GroupCoordinator, "_on_join_prepare", crash_before_it_joins)
    worker = await start_worker(topic)
    await wait_until_async(lambda: worker.crashed, "the worker has crashed")
    async with asyncio.timeout(DEADLINE_SECONDS):
        await worker.stop()

    (coordinator,) = coordinators
    assert coordinator._coordination_task.done()
    assert not coordinator._coordination_task.cancelled()
    assert coordinator.generation < 0  # it has left


async def test_known_ids_stay_with_a_partition_that_stays_and_go_with_one_that_moves(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """A worker that another one joins reads no id of its partitions again, and gives back the memory for the others."""
    fill(settings, topic, events(400, agents=50))
    first = await start_worker(topic)
    await wait_until_async(lambda: applied(database) == 400, "400 events are applied")

    def ranges(worker: Worker, tp: TopicPartition) -> LogRanges:
        writer = worker.partitions[tp]._writer
        assert isinstance(writer, engine.PartitionProjector)
        return writer._ranges

    before = {tp: ranges(first, tp)._open for tp in first.partitions}
    budget = ranges(first, next(iter(before)))._budget
    assert (len(before), budget.reserved_bytes) == (4, 4 * OPEN_IDS_BYTES)
    second = await start_worker(topic)
    await wait_until_async(lambda: len(second.app.consumer.assignment()) == 2, "the second has two partitions")
    await wait_until_async(lambda: budget.reserved_bytes == 2 * OPEN_IDS_BYTES, "the memory for two is given back")
    fill(settings, topic, events(400, agents=50, seed=2))
    await wait_until_async(lambda: applied(database) == 800, "800 events are applied")
    kept = first.app.consumer.assignment()
    assert {tp for tp in before if ranges(first, tp)._open is not None} == kept
    assert [tp for tp in kept if ranges(first, tp)._open is not before[tp]] == []


async def test_restarting_goes_on_at_the_checkpoint(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """A worker that comes back reads on where the tables are, whatever Kafka's committed offset says."""
    fill(settings, topic, events(1000, agents=50))
    worker = await start_worker(topic)
    await wait_until_async(lambda: applied(database) == 1000, "1,000 events are applied")
    await worker.stop()
    fill(settings, topic, events(1000, agents=50, seed=2))

    await start_worker(topic, consumer_group=settings.consumer_group + "-other")

    await wait_until_async(lambda: applied(database) == 2000, "2,000 events are applied")


async def test_a_checkpoint_outside_the_log_stops_its_partition_alone(
    settings: Settings, database: Database, make_topic: MakeTopic, start_worker: StartWorker
) -> None:
    """A checkpoint above the log's end is named and stops one partition; the others go on, nothing is reset."""
    topic = await make_topic(2)
    fill(settings, topic, events(100, agents=50))
    worker = await start_worker(topic)
    await wait_until_async(lambda: applied(database) == 100, "100 events are applied")
    await worker.stop()
    session = Session(database.writer_url)
    session.execute("UPDATE checkpoints SET next_offset = 1000000 WHERE partition = 0")
    session.close()

    again = await start_worker(topic)
    fill(settings, topic, events(100, agents=50, seed=2))

    await wait_until_async(lambda: bool(again.stopped_partitions()), "a partition stops")
    ((tp, error),) = again.stopped_partitions().items()
    assert (tp.partition, type(error).__name__) == (0, "CheckpointOutOfLog")
    await wait_until_async(lambda: applied(database) > 100, "more than 100 events are applied")


async def test_a_worker_tells_where_it_is(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """Each partition's checkpoint and end, and what was done to how many records, for whoever watches."""
    fill(settings, topic, events(400, agents=50))
    worker = await start_worker(topic)
    await wait_until_async(lambda: applied(database) == 400, "400 events are applied")
    await wait_until_async(lambda: sum(done for done, _ in worker.positions().values()) == 400, "400 records are done")

    PartitionGauges().update(worker)

    assert {tp.partition for tp in worker.positions()} == {0, 1, 2, 3}
    assert all(done == end for done, end in worker.positions().values())
    exposed = generate_latest().decode()
    samples = re.findall(rf'^plant_worker_next_offset{{partition="(\d)",topic="{topic}"}} (\d+)', exposed, re.MULTILINE)
    assert {int(partition): float(offset) for partition, offset in samples} == {
        tp.partition: done for tp, (done, _) in worker.positions().items()
    }
    assert re.search(
        rf'^plant_worker_records_total{{disposition="applied",topic="{topic}"}} 400', exposed, re.MULTILINE
    )
    assert 'plant_worker_partitions{state="owned"} 4' in exposed


def test_metrics_are_served_where_the_settings_say() -> None:
    """The address is one to listen on, or a named error says what is wrong with it."""
    port = choose_port(None, set())
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigurationError, match=str(port)):
        serve_metrics(f"127.0.0.1:{port}")
    with pytest.raises(ConfigurationError, match="nowhere"):
        serve_metrics("nowhere")
    server = serve_metrics(f"127.0.0.1:{port}")
    assert server is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_SECONDS) as answer:
        assert b"plant_worker_batch_duration_seconds" in answer.read()
    server.shutdown()
    server.server_close()


async def test_pauses_lose_nothing(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that is paused while its records are being fetched gets them all the same."""
    fetch = RecordBatchFetcher._fetch

    async def paused_meanwhile(
        thread: RecordBatchFetcher, consumer: RepairedConsumer, opened: Mapping[TopicPartition, OpenPartition]
    ) -> dict[TopicPartition, RecordColumns] | None:
        fetched = await fetch(thread, consumer, opened)
        for state in opened.values():
            state.paused = True  # as a queue that has just become full does
            asyncio.get_running_loop().call_later(0.01, setattr, state, "paused", False)
        return fetched

    monkeypatch.setattr(RecordBatchFetcher, "_fetch", paused_meanwhile)
    monkeypatch.setattr(ownership, "QUEUED_RECORDS_MAX", 200)
    fill(settings, topic, events(4_000, agents=50))

    worker = await start_worker(topic, worker_batch_max_records=100)

    await wait_until_async(
        lambda: sum(done for done, _ in worker.positions().values()) == 4_000, "4,000 records are done"
    )
    assert applied(database) == 4_000


async def test_a_fetcher_that_has_ended_is_restarted(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's fetcher ends with an error that it does not expect; the worker goes on, and nothing is missing."""
    fill(settings, topic, events(1_000, agents=50))
    failed = fail_fetches(monkeypatch, 2, when=lambda: applied(database))
    worker = await start_worker(topic)
    await wait_until_async(
        lambda: applied(database) == 1_000 and failed(), "1,000 events are applied, and a batch failed"
    )
    fill(settings, topic, events(1_000, agents=50, seed=2))

    await wait_until_async(lambda: applied(database) == 2_000, "2,000 events are applied")
    assert worker.crashed is None


async def test_a_worker_outside_its_group_gives_up(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker
) -> None:
    """Where what keeps it in the group has ended, it ends too, rather than live on without partitions."""
    fill(settings, topic, events(100, agents=50))
    worker = await start_worker(topic)
    await wait_until_async(lambda: applied(database) == 100, "100 events are applied")
    thread = worker.app.consumer._thread
    coordinator = thread._consumer._coordinator

    async def fault() -> None:
        raise KafkaError("seen in aiokafka")

    async def end() -> None:
        coordinator._coordination_task.cancel()
        coordinator._coordination_task = asyncio.ensure_future(fault())

    asyncio.run_coroutine_threadsafe(end(), thread.thread_loop)
    await wait_until_async(lambda: worker.crashed is not None, "the worker has crashed")


async def test_a_panic_in_a_library_is_only_a_failure(
    settings: Settings, database: Database, topic: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no Exception to Python, but the partition is taken again like after any other."""
    panics = iter([True])

    def panicking(*arguments: Any) -> PreparedBatch:
        if next(panics, False):
            raise pl.exceptions.PanicException("seen in polars")
        return prepare(*arguments)

    monkeypatch.setattr(engine, "prepare", panicking)
    fill(settings, topic, events(400, agents=50))

    await start_worker(topic)

    await wait_until_async(lambda: applied(database) == 400, "400 events are applied")
    assert next(panics, None) is None
