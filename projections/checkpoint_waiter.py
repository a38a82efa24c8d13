"""Waiting until read models show an event: their checkpoints have passed the event's position."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from database.connector import connect, fetch_rows
from projections.checkpoint_poller import LOG, CheckpointPoller, NotCaughtUp, missing_positions
from runtime.clock import Clock, SystemClock
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from streams.record_position import RecordPosition

_BUILDS: Final = (
    "SELECT read_model, bool_or(live) AS live FROM read_model_builds GROUP BY read_model ORDER BY read_model"
)

Missing = list[tuple[RecordPosition, int]]


class UnknownReadModel(ConfigurationError):
    """There is no such read model."""


class ReadModels:
    """The read models that readers see, as `plant_api` sees them. Close it at the end.

    read_models = ReadModels(settings)
    await read_models.wait_for(position, timeout_seconds=5)
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._database = connect(settings, "api")
        self._poller = CheckpointPoller(self._database)
        self._clock = clock or SystemClock()

    async def wait_for(self, position: RecordPosition, timeout_seconds: float, *models: str) -> None:
        """Return when these read models, or without names all that readers see, have applied the record at a position.

        A record that the log calls parked, poison or a repeat counts as applied: they have passed it, and no row shows
        it. `log` is the log itself. Raises NotCaughtUp, UnknownReadModel, and what the database raises.
        """
        deadline = self._clock.monotonic_seconds() + timeout_seconds
        while (found := await self._missing(position, models)) is not None:
            model, missing = found
            left_seconds = deadline - self._clock.monotonic_seconds()
            if left_seconds <= 0:
                raise NotCaughtUp(model, missing, timeout_seconds)
            with contextlib.suppress(NotCaughtUp):  # how far it is then is asked once more
                await self._poller.wait_for(model, [position], left_seconds)

    async def close(self) -> None:
        """Close the connections to Postgres."""
        await self._poller.close()
        await self._database.close()

    async def _missing(self, position: RecordPosition, names: Sequence[str]) -> tuple[str, Missing] | None:
        """Return the first read model that has not applied the record, and how far it is; None where all have."""
        async with self._database.transaction(read_only=True) as connection:
            builds = {row["read_model"]: row["live"] for row in await fetch_rows(connection, _BUILDS)}
            for name in names:
                if name not in builds and name != LOG:
                    raise UnknownReadModel(
                        f"There is no read model {name!r}.",
                        why=f"Known are {', '.join(builds) or 'none'}, and {LOG}.",
                        next_step="plant projections list",
                    )
            wanted = names or [name for name, live in builds.items() if live]
            if not wanted:
                raise UnknownReadModel(
                    "There is no read model that readers see.",
                    why="None was made, or none has caught up with the log yet.",
                    next_step="plant projections list",
                )
            for model in wanted:
                missing = await missing_positions(connection, model, [position])
                if missing:
                    return model, missing
        return None
