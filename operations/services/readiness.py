"""Whether a service that serves no requests can do its work: what `/readyz` of its metrics address answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from operations.services.least_privilege import require_least_privilege
from runtime.errors import PlantError
from runtime.settings import DatabaseRole, Settings
from streams.agents import Worker
from streams.topics import admin


class ServiceReadiness:
    """Readiness of a service: Postgres and Kafka answer now, and what else it says itself."""

    def __init__(self, settings: Settings, role: DatabaseRole, *, kafka: bool = True) -> None:
        self._settings = settings
        self._role: DatabaseRole = role
        self._kafka = kafka
        self.own_faults: Callable[[], Mapping[str, str]] = lambda: {"service": "It has not started yet."}
        """What the service knows of its own state, by part; it replaces this once it has started."""

    async def faults(self) -> Mapping[str, str]:
        """Return what is missing, by part; empty when the service can do its work."""
        faults = dict(self.own_faults())
        try:
            await require_least_privilege(self._settings, self._role)
        except PlantError as error:
            faults["postgres"] = type(error).__name__
        if self._kafka:
            try:
                async with admin(self._settings):
                    pass
            except PlantError as error:
                faults["kafka"] = type(error).__name__
        return faults

    def follow(self, worker: Worker) -> None:
        """Ask this worker for its partitions from now on."""
        self.own_faults = lambda: group_faults(worker)


def group_faults(worker: Worker) -> dict[str, str]:
    """Return what keeps a worker from its partitions. One that the group has given none is ready: it stands by."""
    if worker.crashed is not None:
        return {"group": f"The worker gave up: {type(worker.crashed).__name__}."}
    if not worker.joined:
        return {"group": "It has not joined its group yet."}
    assigned, stopped = worker.assigned_partitions(), worker.stopped_partitions()
    closed = len(assigned - worker.positions().keys() - stopped.keys())
    faults = {}
    if closed:
        faults["partitions"] = f"{closed} of {len(assigned)} are not open yet."
    if stopped:
        faults["stopped"] = f"{len(stopped)} of {len(assigned)} wait for an operator."
    return faults
