"""Waiting until a read model shows an event: its checkpoint has passed the event's position."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy import text

from database.connector import connect
from runtime.clock import Clock, SystemClock
from runtime.settings import Settings
from streams.errors import CaughtUpTooLate
from streams.record_position import RecordPosition

FIRST_PAUSE_SECONDS: Final = 0.005
LONGEST_PAUSE_SECONDS: Final = 0.2

# A read model may have several builds: the one that readers see counts. The log has version 0, and no build.
_NEXT_OFFSET: Final = text("""
    SELECT max(next_offset) FROM projection_checkpoints
    WHERE projection = :projection AND topic = :topic AND partition = :partition
      AND version = coalesce((SELECT version FROM read_model_builds WHERE projection = :projection AND live), 0)
""")


class CheckpointWaiter:
    """Waits for checkpoints by asking Postgres, as `plant_api`."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._database = connect(settings, "api")
        self._clock = clock or SystemClock()

    async def wait_for(self, position: RecordPosition, projection: str, timeout_seconds: float) -> None:
        """Return when the read model's checkpoint has passed the position. Raises CaughtUpTooLate."""
        deadline = self._clock.monotonic_seconds() + timeout_seconds
        pause_seconds = FIRST_PAUSE_SECONDS
        while (next_offset := await self._next_offset(position, projection)) <= position.offset:
            if self._clock.monotonic_seconds() + pause_seconds > deadline:
                raise CaughtUpTooLate(
                    f"The read model {projection} has not reached {position} within {timeout_seconds:g} s.",
                    why=f"It is at offset {next_offset}; a worker may be down or behind.",
                    next_step="plant status",
                )
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, LONGEST_PAUSE_SECONDS)

    async def close(self) -> None:
        """Close the connections to Postgres."""
        await self._database.close()

    async def _next_offset(self, position: RecordPosition, projection: str) -> int:
        values = {"projection": projection, "topic": position.topic, "partition": position.partition}
        async with self._database.transaction() as connection:
            return (await connection.execute(_NEXT_OFFSET, values)).scalar_one() or 0
