"""Wiring of a dispatcher process: settings in, a running dispatcher out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from database import schema_revision
from deliveries.dispatch.backfill_reader import BackfillRate
from deliveries.dispatch.delivery_sender import DeliverySender
from deliveries.dispatch.dispatcher_parts import DispatcherParts
from deliveries.dispatch.endpoint_directory import EndpointDirectory
from deliveries.dispatch.endpoint_outbox import EndpointOutbox
from deliveries.dispatch.missing_finder import MissingFinder
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from deliveries.redrive.missing_deliveries import DeliveryTopicNames
from operations.services.least_privilege import require_least_privilege
from operations.services.readiness import ServiceReadiness
from operations.services.worker import SWITCH_SECONDS, WORKER_GC_THRESHOLDS
from projections.checkpoints import DISPATCHER
from projections.log_checkpoints import LogCheckpoints
from runtime import metrics
from runtime.errors import PlantError
from runtime.lifecycle import serve_metrics, stop_on_signals, tune_gc
from runtime.logging import get_logger
from runtime.probes import Probes
from runtime.settings import Settings
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC
from schemas.endpoint_events import ENDPOINT_EVENTS_TOPIC
from schemas.external_registry import activate_registry
from streams.agents import Worker
from streams.producer import EventProducer, Limits
from streams.topics import EVENTS_TOPIC

log = get_logger(__name__)

GROUP_SUFFIX: Final = "-dispatcher"
OBSERVE_EVERY_SECONDS: Final = 0.5
PUBLISH_TIMEOUT_SECONDS: Final = 15.0
"""How long a slice of deliveries waits for Kafka. After that its partition begins again, and all of it is a copy."""


class DispatcherCrashed(PlantError):
    """The dispatcher gave up and has to be started again; nothing is lost."""


@contextlib.asynccontextmanager
async def running_dispatcher(
    settings: Settings, topic: str = EVENTS_TOPIC, deliveries_topic: str = DELIVERIES_TOPIC,
    endpoints_topic: str = ENDPOINT_EVENTS_TOPIC, attempts_topic: str = ATTEMPTS_TOPIC,
) -> AsyncIterator[Worker]:  # fmt: skip
    """Yield a dispatcher that has joined its group; it is stopped when the block ends.

    Raises DatabaseUnreachable, KafkaUnavailable, TopicMissing.
    """
    url = settings.database_address("writer")
    limits = Limits(publish_timeout_seconds=PUBLISH_TIMEOUT_SECONDS)
    producer = EventProducer(settings, topics=(deliveries_topic,), limits=limits)
    directory = EndpointDirectory(settings)
    log_checkpoints = LogCheckpoints(url, topic, DISPATCHER)
    rate = BackfillRate(settings.dispatcher_backfill_per_second, time.monotonic)
    sender = DeliverySender(producer, deliveries_topic)
    parts = DispatcherParts(url, log_checkpoints, directory, sender, rate, deliveries_topic)
    outbox = EndpointOutbox(settings, sender, endpoints_topic)
    finder = MissingFinder(settings, DeliveryTopicNames(topic, deliveries_topic, attempts_topic))
    group = msgspec.structs.replace(settings, consumer_group=settings.consumer_group + GROUP_SUFFIX)
    try:
        await producer.start()
        await directory.start()
        worker = Worker(
            group,
            [topic],
            lambda name, partition: PartitionDispatcher(parts, name, partition),
        )
        await worker.start()
        outbox.start()
        finder.start()
        try:
            yield worker
        finally:
            log.info("dispatcher.stopping")
            await worker.stop()
    finally:
        await log_checkpoints.close()
        await finder.stop()
        await outbox.stop()
        await directory.stop()
        await producer.stop()


async def serve_dispatcher(
    settings: Settings, topic: str = EVENTS_TOPIC, deliveries_topic: str = DELIVERIES_TOPIC,
    ready: Callable[[Worker], None] | None = None,
) -> None:  # fmt: skip
    """Run a dispatcher until SIGINT or SIGTERM. Raises SchemaBehind, TooMuchPrivilege, DatabaseUnreachable,
    KafkaUnavailable, TopicMissing, DispatcherCrashed.
    """
    await asyncio.to_thread(schema_revision.require_current_schema, settings.database_address("writer"))
    activate_registry(settings)
    await require_least_privilege(settings, "writer")
    readiness = ServiceReadiness(settings, "writer")
    serve_metrics(settings.dispatcher_metrics_address, "dispatcher", Probes(readiness))
    tune_gc(*WORKER_GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)
    stop = asyncio.Event()
    with stop_on_signals(stop.set):
        async with running_dispatcher(settings, topic, deliveries_topic) as worker:
            readiness.follow(worker)
            if ready is not None:
                ready(worker)
            gauges = DispatcherGauges()
            while not stop.is_set() and worker.crashed is None:
                gauges.update(worker)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), timeout=OBSERVE_EVERY_SECONDS)
    if worker.crashed is not None:
        raise DispatcherCrashed(why=repr(worker.crashed), next_step="plant dispatcher") from worker.crashed


class DispatcherGauges:
    """The gauges of a dispatcher's partitions; those of a partition that has moved to another one go."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, int]] = set()

    def update(self, worker: Worker) -> None:
        """Set the gauges; a partition that is assigned and not open keeps its last values."""
        positions = worker.positions()
        for (topic, partition), (next_offset, log_end) in positions.items():
            metrics.DISPATCHER_LAG.labels(topic, partition).set(log_end - next_offset)
        shown = self._shown | {(tp.topic, tp.partition) for tp in positions}
        self._shown = shown & {(tp.topic, tp.partition) for tp in worker.assigned_partitions()}
        for moved in shown - self._shown:
            metrics.DISPATCHER_LAG.remove(*moved)
        metrics.DISPATCHER_PARTITIONS.labels("owned").set(len(positions))
        metrics.DISPATCHER_PARTITIONS.labels("stopped").set(len(worker.stopped_partitions()))
