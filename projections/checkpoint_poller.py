"""One poller of checkpoints for all who wait: a query at a time says how far the waited-for read models are.

Who waits holds no connection to the database. The read model's build that readers see counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database, fetch_rows
from streams.errors import CaughtUpTooLate
from streams.record_position import RecordPosition

FIRST_PAUSE_SECONDS: Final = 0.005
LONGEST_PAUSE_SECONDS: Final = 0.1
PAUSE_GROWTH: Final = 1.5
LOG: Final = "log"
"""Waits for the log itself: it has version 0, and no build."""

# A read model without a checkpoint in a partition has applied nothing there yet. All partitions of the models that are
# waited for are read: how many there are is not for those who wait to choose.
_OF_MODELS: Final = """
    SELECT wanted.name, c.topic, c.partition, min(c.next_offset) AS next_offset
    FROM unnest($1::text[]) AS wanted (name)
    LEFT JOIN read_model_builds AS b ON b.read_model = wanted.name AND b.live
    JOIN projection_checkpoints AS c
        ON c.projection = coalesce(b.projection, wanted.name) AND c.version = coalesce(b.version, 0)
    GROUP BY wanted.name, c.topic, c.partition
"""
_OF_POSITIONS: Final = """
    SELECT min(coalesce(c.next_offset, 0)) AS next_offset
    FROM unnest($2::text[], $3::integer[]) WITH ORDINALITY AS wanted (topic, partition, number)
    LEFT JOIN read_model_builds AS b ON b.read_model = $1 AND b.live
    LEFT JOIN projection_checkpoints AS c
        ON c.topic = wanted.topic AND c.partition = wanted.partition
        AND c.projection = coalesce(b.projection, $1) AND c.version = coalesce(b.version, 0)
    GROUP BY wanted.number ORDER BY wanted.number
"""


async def missing_positions(
    connection: AsyncConnection, model: str, positions: Sequence[RecordPosition]
) -> list[tuple[RecordPosition, int]]:
    """Return the positions that a read model has not applied, with the next offset that it has there.

    The build that readers see counts; of two with views of their own, the one that is behind. What a later statement of
    the transaction reads has all other positions.
    """
    topics, partitions = [each.topic for each in positions], [each.partition for each in positions]
    rows = await fetch_rows(connection, _OF_POSITIONS, model, topics, partitions)
    next_offsets = [row[0] or 0 for row in rows]
    return [(each, offset) for each, offset in zip(positions, next_offsets, strict=True) if offset <= each.offset]


class ModelPartition(NamedTuple):
    """A partition as a read model has it."""

    model: str
    topic: str
    partition: int


class NotCaughtUp(CaughtUpTooLate):
    """The read model has not reached the position in time; a worker may be down or behind."""

    def __init__(self, model: str, missing: Sequence[tuple[RecordPosition, int]], timeout_seconds: float) -> None:
        self.model = model
        self.missing = tuple(missing)
        """Each position that was not reached, with the next offset that the read model had there."""
        position, next_offset = missing[0]
        super().__init__(
            f"The read model {model} has not reached {position} within {timeout_seconds:g} s.",
            why=f"It is at offset {next_offset}; a worker may be down or behind.",
            next_step="plant status",
        )


class _Waiter:
    """One who waits: the positions that are still missing, and what it is told in."""

    def __init__(self, missing: dict[ModelPartition, int], told: asyncio.Future[None]) -> None:
        self.missing = missing
        self.told = told
        self.error: BaseException | None = None


class CheckpointPoller:
    """Waits for read models by asking Postgres, for any number of waiters. One an event loop; close it at the end."""

    def __init__(self, database: Database, *, replica: bool = False) -> None:
        """With `replica` it asks the server that reads go to: a replica may be behind the primary."""
        self._database = database
        self._replica = replica
        self._waits: dict[ModelPartition, set[_Waiter]] = {}
        self._next_offsets: dict[ModelPartition, int] = {}
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait_for(self, model: str, positions: Sequence[RecordPosition], timeout_seconds: float) -> None:
        """Return when the read model has applied the records at all of these positions.

        Raises NotCaughtUp, and what the database raises.
        """
        wanted = {ModelPartition(model, each.topic, each.partition): each.offset for each in positions}
        if not wanted:
            return
        wait = _Waiter(wanted, asyncio.get_running_loop().create_future())
        self._begin(wait)
        try:
            async with asyncio.timeout(timeout_seconds):
                await wait.told
            if wait.error is not None:
                raise wait.error.with_traceback(None)  # one error of all who wait
        except TimeoutError as error:
            missing = [
                (RecordPosition(key.topic, key.partition, offset), self._next_offsets.get(key, 0))
                for key, offset in wait.missing.items()
            ]
            raise NotCaughtUp(model, missing, timeout_seconds) from error
        finally:
            self._end(wait)

    async def close(self) -> None:
        """Stop asking. Who still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._tell_all(None)

    def _begin(self, wait: _Waiter) -> None:
        for key in wait.missing:
            self._waits.setdefault(key, set()).add(wait)
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name="checkpoints")

    def _end(self, wait: _Waiter) -> None:
        for key in wait.missing:
            waits = self._waits.get(key)
            if waits is not None:
                waits.discard(wait)
                if not waits:
                    del self._waits[key]
                    self._next_offsets.pop(key, None)

    async def _poll(self) -> None:
        while True:
            self._woken.clear()
            if not self._waits:
                await self._woken.wait()
                continue
            try:
                self._advance(await self._read(sorted({key.model for key in self._waits})))
            except Exception as error:
                self._tell_all(error)
            await self._pause()

    async def _pause(self) -> None:
        """Wait a little longer than last time; somebody new is served after the shortest pause."""
        pause_seconds = self._pause_seconds
        self._pause_seconds = min(pause_seconds * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
        if pause_seconds > FIRST_PAUSE_SECONDS:
            try:
                async with asyncio.timeout(pause_seconds - FIRST_PAUSE_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                return

    async def _read(self, models: Sequence[str]) -> dict[ModelPartition, int]:
        async with self._database.transaction(read_only=True, replica=self._replica) as connection:
            rows = await fetch_rows(connection, _OF_MODELS, models)
        return {ModelPartition(row[0], row[1], row[2]): row[3] for row in rows}

    def _advance(self, next_offsets: dict[ModelPartition, int]) -> None:
        """Tell those whose last missing position was reached."""
        for key, waits in list(self._waits.items()):
            next_offset = self._next_offsets[key] = next_offsets.get(key, 0)
            for wait in [each for each in waits if each.missing[key] < next_offset]:
                waits.discard(wait)
                del wait.missing[key]
                if not wait.missing and not wait.told.done():
                    wait.told.set_result(None)
            if not waits:
                del self._waits[key]
                del self._next_offsets[key]

    def _tell_all(self, error: BaseException | None) -> None:
        """Tell everybody who waits that nobody can say how far the read models are."""
        for wait in {each for waits in self._waits.values() for each in waits}:
            if not wait.told.done():
                wait.error = error
                wait.told.set_result(None) if error is not None else wait.told.cancel()
