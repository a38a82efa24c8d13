"""Wiring of a deliverer process: settings in, a running deliverer out."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections import Counter
from collections.abc import Callable

import msgspec

from database import schema_revision
from database.connector import Database, connect
from deliveries.deliverer.attempt_slots import AttemptSlots
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryProcess, DeliveryTopics
from deliveries.deliverer.endpoint_cache import EndpointCache
from deliveries.deliverer.partition_deliverer import DeliveryTopicWriter, PartitionDeliverer
from deliveries.delivery_progress import count_rows
from deliveries.failure_streak import make_streak_policy
from deliveries.guard.connections import DeliveryClient
from deliveries.state.recorder import GATHER_SECONDS, build_recorder
from operations.services.least_privilege import require_least_privilege
from operations.services.readiness import ServiceReadiness
from operations.services.worker import OBSERVE_EVERY_SECONDS, SWITCH_SECONDS, WORKER_GC_THRESHOLDS, WorkerCrashed
from runtime import metrics
from runtime.clock import Clock, SystemClock
from runtime.lifecycle import serve_metrics, stop_on_signals, tune_gc
from runtime.logging import get_logger
from runtime.probes import Probes
from runtime.settings import Settings
from schemas.external_registry import activate_registry
from signing.master_key import MasterKeys
from streams.agents import Worker
from streams.ownership import PartitionWriter
from streams.producer import EventProducer, Limits

log = get_logger(__name__)

GROUP_SUFFIX = "-deliverer"
COUNT_EVERY_SECONDS = 10.0
"""How often it is counted what waits in Postgres."""


class Deliverer:
    """A deliverer: a worker on the topics of deliveries, retries and attempts, with client, producer and endpoints.

    Make it inside the event loop that will run it.
    """

    def __init__(self, settings: Settings, topics: DeliveryTopics | None = None, clock: Clock | None = None) -> None:
        self._settings = settings
        self._database: Database = connect(settings, "deliverer")
        names = topics or DeliveryTopics()
        master_keys = MasterKeys(settings)
        self.process = DeliveryProcess(
            settings=settings,
            client=DeliveryClient(settings),
            producer=EventProducer(settings, topics=names.written, limits=Limits(publish_timeout_seconds=15.0)),
            endpoints=EndpointCache(self._database, master_keys),
            slots=AttemptSlots(settings.deliverer_attempts_max, settings.deliveries_connections_max),
            clock=clock or SystemClock(),
            topics=names,
            limits=DelivererLimits(attempts_per_endpoint=settings.deliverer_attempts_per_endpoint),
            streaks=make_streak_policy(settings),
        )
        self._partitions: dict[int, PartitionDeliverer] = {}
        group = msgspec.structs.replace(settings, consumer_group=settings.consumer_group + GROUP_SUFFIX)
        self._recorder_for = build_recorder(settings)
        self._topics = (names.deliveries, *names.retries, names.attempts)
        self.worker = Worker(
            group,
            self._topics,
            self._writer_for,
            together=True,
            gathered_seconds={names.attempts: GATHER_SECONDS},
        )
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Join the group. Raises KafkaUnavailable, TopicMissing, DatabaseUnreachable."""
        await self.process.producer.start()
        await self.process.endpoints.refresh()
        self._background = [
            asyncio.create_task(self.process.endpoints.keep_fresh(), name="endpoints"),
            asyncio.create_task(self._keep_counting(), name="rows"),
        ]
        await self.worker.start()

    async def stop(self) -> None:
        """Let attempts under way end, write down what came of them, and leave the group."""
        await asyncio.gather(*(each.drain() for each in self._partitions.values()), return_exceptions=True)
        await self.worker.stop()
        await asyncio.gather(*(each.close() for each in self._partitions.values()))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.process.producer.stop()
        await self.process.client.close()
        await self._database.close()

    def update_gauges(self) -> None:
        """Set the gauges."""
        slots = self.process.slots
        metrics.DELIVERER_UNDER_WAY.labels("quick").set(slots.under_way - slots.slow)
        metrics.DELIVERER_UNDER_WAY.labels("slow").set(slots.slow)
        runs = [each.run for each in self._partitions.values() if each.run is not None]
        metrics.DELIVERER_WAITING.labels("due").set(sum(run.queues.due for run in runs))
        metrics.DELIVERER_WAITING.labels("waiting").set(sum(run.waiting for run in runs))
        states = sum((run.queues.breaker_states() for run in runs), Counter())
        for state in ("open", "half_open"):
            metrics.DELIVERER_BREAKERS.labels(state).set(states[state])
        positions = self.worker.positions()
        metrics.DELIVERER_PARTITIONS.set(len(positions))
        lag = Counter[str]()
        for (topic, _), (next_offset, log_end) in positions.items():
            lag[topic] += log_end - next_offset
        for topic in self._topics:
            metrics.DELIVERER_LAG.labels(topic).set(lag[topic])

    async def _count_rows(self) -> None:
        runs = {number: each.run for number, each in self._partitions.items()}
        owned = [number for number, run in runs.items() if run is not None and run.failure is None]
        counts = await count_rows(self._database, owned)
        metrics.DELIVERER_ROWS.labels("due").set(counts.due)
        metrics.DELIVERER_ROWS.labels("waiting").set(counts.waiting)

    async def _keep_counting(self) -> None:
        """Count rows until cancelled; where that fails no number is shown, and it is tried again."""
        while True:
            try:
                await self._count_rows()
            except Exception as error:
                metrics.DELIVERER_ROWS.labels("due").set(math.nan)
                metrics.DELIVERER_ROWS.labels("waiting").set(math.nan)
                log.warning("rows.not_counted", why=getattr(error, "why", repr(error)))
            await asyncio.sleep(COUNT_EVERY_SECONDS)

    def _writer_for(self, topic: str, partition: int) -> PartitionWriter:
        if topic == self.process.topics.attempts:
            return self._recorder_for(topic, partition)
        deliverer = self._partitions.get(partition)
        if deliverer is None:
            url = self._settings.database_address("deliverer")
            deliverer = self._partitions[partition] = PartitionDeliverer(self.process, url, partition)
        return DeliveryTopicWriter(deliverer, topic)


async def serve_deliverer(
    settings: Settings, topics: DeliveryTopics | None = None, ready: Callable[[Deliverer], None] | None = None
) -> None:
    """Run a deliverer until SIGINT or SIGTERM.

    Raises SchemaBehind, TooMuchPrivilege, DatabaseUnreachable, KafkaUnavailable, TopicMissing, MasterKeyUnusable,
    WorkerCrashed.
    """
    activate_registry(settings)
    await asyncio.to_thread(schema_revision.require_current_schema, settings.database_address("deliverer"))
    await require_least_privilege(settings, "deliverer")
    readiness = ServiceReadiness(settings, "deliverer")
    serve_metrics(settings.deliverer_metrics_address, "deliverer", Probes(readiness))
    tune_gc(*WORKER_GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)  # or records wait for the loop of attempts at each step on their way to it
    stop = asyncio.Event()
    with stop_on_signals(stop.set):
        deliverer = Deliverer(settings, topics)
        try:
            await deliverer.start()
            readiness.follow(deliverer.worker)
            if ready is not None:
                ready(deliverer)
            while not stop.is_set() and deliverer.worker.crashed is None:
                deliverer.update_gauges()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), timeout=OBSERVE_EVERY_SECONDS)
        finally:
            log.info("deliverer.stopping")
            await deliverer.stop()
    if deliverer.worker.crashed is not None:
        raise WorkerCrashed(
            why=repr(deliverer.worker.crashed), next_step="plant deliverer"
        ) from deliverer.worker.crashed
