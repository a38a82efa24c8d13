"""All partitions of a database that is recovered, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from projections.engine import PartitionProjector
from projections.id_budget import IdBudget
from projections.lagging_models import LaggingModels
from projections.partition_parking import ParkingLimits
from projections.read_model import READ_MODELS
from projections.recovery.recovered_partition import RecoveredPartition
from projections.recovery.recovery_state import UnrecoveredPartition
from runtime.settings import Settings


async def recover_partitions(
    settings: Settings, targets: Sequence[UnrecoveredPartition], jobs: int, advance: Callable[[int], None]
) -> None:
    """Recover partitions, in this order, so many at a time. Raises the first error, once all others have ended."""
    url = settings.database_address("writer")
    id_budget = IdBudget(settings.worker_known_ids_bytes)
    limits = ParkingLimits(settings.worker_parked_entities_max, settings.worker_parked_records_max)
    lagging = LaggingModels(url, READ_MODELS)
    turns = asyncio.Semaphore(jobs)

    async def recover(target: UnrecoveredPartition) -> None:
        async with turns:
            projector = PartitionProjector(
                url, target.topic, target.partition, READ_MODELS, id_budget, parking_limits=limits, lagging=lagging
            )
            await RecoveredPartition(settings, target, projector, advance).run()

    lagging.start()
    running = [asyncio.create_task(recover(each), name=f"recover {each.topic}/{each.partition}") for each in targets]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.to_thread(lagging.close)
