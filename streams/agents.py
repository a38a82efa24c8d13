"""The Faust app of a worker: one agent that hands each batch to the owner of its partition.

One agent serves all partitions. Faust's `isolated_partitions` would start an actor for each partition, but revoking one
marks the subscription as changed and makes the whole group rebalance 45 s later (docs/decisions/0003); the owners in
`streams/ownership.py` give the same overlap without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import faust
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.app.base import BootStrategy
from faust.types import TP

from runtime.logging import get_logger
from runtime.settings import Settings
from streams.batch import EventBatch
from streams.control_search import ControlSearch
from streams.errors import PartitionStopped
from streams.kafka.clients import check_clients
from streams.memory_budget import MemoryBudget
from streams.ownership import OwnedPartition, PartitionWriter
from streams.topics import admin
from streams.transport import RecordBatchConsumer, RecordBatchTransport

log = get_logger(__name__)

WriterFactory = Callable[[str, int], PartitionWriter]


class Worker:
    """A running Faust app and the partitions it owns. Build it inside the event loop that will run it."""

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        writer_for: WriterFactory,
        close_writers: Callable[[], None] = lambda: None,
        *,
        together: bool = False,
        gathered_seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Build the app. `close_writers` closes what the writers share; it blocks, once all of them are closed.

        `together`: partitions of one number go to one member, on all topics; these have as many partitions each.
        `gathered_seconds`, by topic: how long records are left to gather after a fetch that brought few of them.

        Raises RepairMisfit, and ConfigurationError where Kafka's settings can't be used.
        """
        check_clients(settings)
        self.settings = settings
        self.partitions: dict[TP, OwnedPartition] = {}
        self._writer_for = writer_for
        self._close_writers = close_writers
        self._stopping = False
        self.joined = False
        """Whether the group has answered which partitions are its own, be it none."""
        self._budget = MemoryBudget(settings.worker_waiting_bytes)
        self.app = _build_app(
            settings,
            self._budget,
            RangePartitionAssignor if together else RoundRobinPartitionAssignor,
            gathered_seconds or {},
        )
        self.app.on_partitions_revoked.connect(self._revoked, weak=False)
        self.app.on_rebalance_complete.connect(self._assigned, weak=False)
        topic = self.app.topic(*topics, acks=False, value_serializer="raw", key_serializer="raw")
        self.app.agent(topic, name="project", concurrency=1)(self._dispatch)

    async def start(self) -> None:
        """Join the group and project until :meth:`stop`.

        Raises KafkaUnavailable where no broker answers, ConnectionRefused where one does not let the worker in.
        """
        async with admin(self.settings):
            pass  # Where Faust's own client finds no broker, its error is a traceback on stderr.
        await self.app.start()

    async def stop(self) -> None:
        """Leave the group; running batches finish first, queued ones are left to the next owner."""
        self._stopping = True
        owned, self.partitions = list(self.partitions.values()), {}
        await asyncio.gather(*(partition.shut_down() for partition in owned))
        await asyncio.to_thread(self._close_writers)
        await self.app.stop()

    @property
    def crashed(self) -> BaseException | None:
        """The error with which Faust gave up, if it did."""
        return cast("BaseException | None", self.app.crash_reason)

    def stopped_partitions(self) -> dict[TP, PartitionStopped]:
        """Return the partitions that wait for an operator, with the reason."""
        return {tp: owned.stopped for tp, owned in self.partitions.items() if owned.stopped is not None}

    @property
    def waiting_bytes(self) -> int:
        """Memory of the records that wait, and of those that are being projected."""
        return self._budget.reserved_bytes

    def assigned_partitions(self) -> set[TP]:
        """Return the partitions that the group has given to this worker, whether or not they are open."""
        return {tp for tp, owned in self.partitions.items() if owned.assigned}

    def positions(self) -> dict[TP, tuple[int, int]]:
        """Return each owned partition's checkpoint and the end of its log as of the last fetch."""
        consumer = cast(RecordBatchConsumer, self.app.consumer)
        return {tp: (offset, max(_log_end(consumer, tp), offset)) for tp, offset in list(consumer.done.items())}

    async def _dispatch(self, stream: AsyncIterator[EventBatch]) -> None:
        async for batch in stream:
            owned = self.partitions.get(TP(batch.topic, batch.partition))
            if owned is not None:
                owned.submit(batch)

    async def _revoked(self, _app: Any, revoked: set[TP], **_: Any) -> None:
        for tp in revoked:
            if tp in self.partitions:
                self.partitions[tp].revoke()

    async def _assigned(self, _app: Any, **_: Any) -> None:
        # Every assigned partition is acquired again, kept ones too: batches in flight when the rebalance began were
        # dropped on the way, and acquiring makes reading resume at the checkpoint.
        if self._stopping:
            return
        consumer = cast(RecordBatchConsumer, self.app.consumer)
        assigned = consumer.assignment()
        log.info("partitions.assigned", count=len(assigned))
        self.joined = True
        self._budget.divide(len(assigned))
        for tp in sorted(assigned):
            if tp not in self.partitions:
                writer = self._writer_for(tp.topic, tp.partition)
                heartbeat_seconds = self.settings.worker_session_timeout_seconds / 5
                search = ControlSearch(self.settings, tp.topic, tp.partition)
                self.partitions[tp] = OwnedPartition(
                    tp, writer, consumer, heartbeat_seconds=heartbeat_seconds, budget=self._budget, search=search
                )
            self.partitions[tp].assign()
        for tp in self.partitions.keys() - assigned:
            self.partitions[tp].revoke(moved=True)


def _log_end(consumer: RecordBatchConsumer, tp: TP) -> int:
    try:
        return consumer.highwater(tp) or 0
    except AssertionError:
        return 0  # aiokafka's way to say that the partition has just been revoked


class WorkerStart(BootStrategy):  # type: ignore[misc]  # Faust is untyped
    """Faust's way to start, without its producer: workers send nothing, and only our factory makes clients."""

    enable_kafka_producer = False


class App(faust.App):  # type: ignore[misc]  # Faust is untyped
    """Faust's app without folders on disk: it has no tables to keep there."""

    BootStrategy = WorkerStart

    def _create_directories(self) -> None:
        pass


def _build_app(
    settings: Settings,
    budget: MemoryBudget,
    assignor: type[AbstractPartitionAssignor],
    gathered_seconds: Mapping[str, float],
) -> App:
    app = App(
        settings.consumer_group,
        broker=f"kafka://{settings.kafka_address().replace(',', ';')}",
        store="memory://",
        value_serializer="raw",
        key_serializer="raw",
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=False,
        web_enabled=False,
        broker_commit_interval=5.0,
        broker_session_timeout=float(settings.worker_session_timeout_seconds),
        broker_request_timeout=max(90.0, 2.0 * settings.worker_session_timeout_seconds),
        stream_buffer_maxsize=4096,
    )
    transport = RecordBatchTransport(app.conf.broker_consumer, app, app.loop)
    transport.settings, transport.budget, transport.assignor = settings, budget, assignor
    transport.gathered_seconds = gathered_seconds
    app.transport = transport
    return app
