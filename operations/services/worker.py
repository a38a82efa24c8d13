"""Wiring of a worker process: settings in, a running worker out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence

from database.address import shown
from database.errors import BadDatabaseAddress, DatabaseUnreachable
from operations.services.least_privilege import require_least_privilege
from operations.services.readiness import ServiceReadiness
from projections import stored_builds
from projections.engine import PartitionProjector
from projections.id_budget import IdBudget
from projections.lagging_models import LaggingModels
from projections.partition_parking import ParkingLimits
from projections.read_model import READ_MODELS
from projections.session import Session
from runtime import metrics
from runtime.errors import PlantError
from runtime.lifecycle import bound_malloc_arenas, serve_metrics, stop_on_signals, tune_gc
from runtime.logging import get_logger
from runtime.probes import Probes
from runtime.settings import Settings
from schemas.external_registry import activate_registry
from streams.agents import Worker
from streams.errors import SchemaNewer
from streams.topics import EVENTS_TOPIC, OPERATIONS_TOPIC

log = get_logger(__name__)

TOPICS: Sequence[str] = (EVENTS_TOPIC, OPERATIONS_TOPIC)


WORKER_GC_THRESHOLDS = (100_000, 20, 50)
"""The first is the number of objects between two runs of Python's cycle collector, which looks at lists and the like.
Records wait as bytes in a few long lists, so few objects are left to look at; a burst of small batches makes more."""


MALLOC_ARENAS = 2
"""With 48 partitions, each of which has a thread, a worker that catches up then takes 65 MB less."""


SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter while others wait: the loop and each partition have one."""

OBSERVE_EVERY_SECONDS = 0.5
"""How often gauges are updated, and a crash is noticed."""


class WorkerCrashed(PlantError):
    """The worker gave up and has to be started again; nothing is lost."""


def build_worker(settings: Settings, topics: Sequence[str] = TOPICS) -> Worker:
    """Return a worker that keeps the event log, the audit chain and every read model. Call it inside the event loop."""
    url = settings.database_address("writer")
    id_budget = IdBudget(settings.worker_known_ids_bytes)
    parking_limits = ParkingLimits(settings.worker_parked_entities_max, settings.worker_parked_records_max)
    lagging = LaggingModels(url, READ_MODELS)
    lagging.start()

    def writer_for(topic: str, partition: int) -> PartitionProjector:
        return PartitionProjector(
            url, topic, partition, READ_MODELS, id_budget, parking_limits=parking_limits, lagging=lagging
        )

    return Worker(settings, topics, writer_for, close_writers=lagging.close)


async def serve_worker(
    settings: Settings, topics: Sequence[str] = TOPICS, ready: Callable[[Worker], None] | None = None
) -> None:
    """Run a worker until SIGINT or SIGTERM. Raises TooMuchPrivilege, DatabaseUnreachable, BadDatabaseAddress,
    BuildMissing, FoldChanged, WorkerCrashed.
    """
    bound_malloc_arenas(MALLOC_ARENAS)
    activate_registry(settings)
    await require_least_privilege(settings, "writer")
    await require_writer_session(settings)
    readiness = ServiceReadiness(settings, "writer")
    serve_metrics(settings.worker_metrics_address, probes=Probes(readiness))
    tune_gc(*WORKER_GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)
    stop = asyncio.Event()
    with stop_on_signals(stop.set):
        worker = build_worker(settings, topics)
        await worker.start()
        readiness.follow(worker)
        if ready is not None:
            ready(worker)
        gauges = PartitionGauges()
        try:
            while not stop.is_set() and worker.crashed is None:
                gauges.update(worker)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), timeout=OBSERVE_EVERY_SECONDS)
        finally:
            log.info("worker.stopping")
            await worker.stop()
    if worker.crashed is not None:
        raise WorkerCrashed(why=repr(worker.crashed), next_step="plant worker") from worker.crashed


async def require_writer_session(settings: Settings) -> None:
    """Raise BadDatabaseAddress where libpq can't use an address that asyncpg can.

    Asked before the group is joined: otherwise this worker would hold partitions that it can never write. A key file
    that others may read is one that libpq refuses, say. Raises BuildMissing or FoldChanged where the database does not
    keep the read models of this release as they are.
    """
    url = settings.database_address("writer")
    try:
        await asyncio.to_thread(_require_builds, url)
    except DatabaseUnreachable as error:
        await require_least_privilege(settings, "writer")  # It may have gone away in between.
        raise BadDatabaseAddress(
            f"A worker can't connect to {shown(url)}.",
            why=f"PLANT_DATABASE_WRITER_URL: {error.why.strip()}.",
            next_step="plant settings",
        ) from error


def _require_builds(url: str) -> None:
    with contextlib.closing(Session(url)) as session:
        stored_builds.require_builds(session, READ_MODELS)


class PartitionGauges:
    """The gauges of a worker's partitions; those of a partition that has moved to another worker go."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, int]] = set()

    def update(self, worker: Worker) -> None:
        """Set the gauges; a partition that is assigned and not open keeps its last values."""
        positions = worker.positions()
        for (topic, partition), (next_offset, log_end) in positions.items():
            metrics.WORKER_NEXT_OFFSET.labels(topic, partition).set(next_offset)
            metrics.WORKER_LOG_END.labels(topic, partition).set(log_end)
        shown = self._shown | {(tp.topic, tp.partition) for tp in positions}
        self._shown = shown & {(tp.topic, tp.partition) for tp in worker.assigned_partitions()}
        for moved in shown - self._shown:
            metrics.WORKER_NEXT_OFFSET.remove(*moved)
            metrics.WORKER_LOG_END.remove(*moved)
        stopped = worker.stopped_partitions().values()
        newer = sum(isinstance(error, SchemaNewer) for error in stopped)
        for state, count in {"owned": len(positions), "stopped": len(stopped), "schema_newer": newer}.items():
            metrics.WORKER_PARTITIONS.labels(state).set(count)
        metrics.WORKER_WAITING_BYTES.set(worker.waiting_bytes)
