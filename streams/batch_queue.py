"""The slices of one partition that wait for their transaction."""

from __future__ import annotations

import asyncio
from collections import deque

from streams.batch import EventBatch
from streams.memory_budget import MemoryBudget


class BatchQueue:
    """Slices in the order of their arrival; their bytes are reserved in the worker's budget until they are taken."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.records = 0
        self.size_bytes = 0
        self._budget = budget
        self._slices: deque[tuple[EventBatch, int]] = deque()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._slices)

    async def wait(self) -> None:
        """Return once there is a slice."""
        await self._arrived.wait()

    def put(self, batch: EventBatch) -> None:
        """Append a slice."""
        self._slices.append(self._reserve(batch))
        self._arrived.set()

    def take(self, records_max: int | None) -> list[EventBatch]:
        """Take out slices with up to this many records, cutting the last one; all of them where it is None.

        At least one slice comes, and of a slice at least one record.
        """
        taken: list[EventBatch] = []
        room = records_max
        while self._slices and (room is None or room > 0):
            batch, size_bytes = self._slices.popleft()
            self._release(batch, size_bytes)
            if room is not None and len(batch) > room:
                self._slices.appendleft(self._reserve(batch.between(room, len(batch))))
                batch = batch.between(0, room)
            taken.append(batch)
            room = None if room is None else room - len(batch)
        if not self._slices:
            self._arrived.clear()
        return taken

    def clear(self) -> None:
        """Drop all slices."""
        self.take(None)

    def _reserve(self, batch: EventBatch) -> tuple[EventBatch, int]:
        size_bytes = batch.size_bytes
        self.records += len(batch)
        self.size_bytes += size_bytes
        self._budget.reserve(size_bytes)
        return batch, size_bytes

    def _release(self, batch: EventBatch, size_bytes: int) -> None:
        self.records -= len(batch)
        self.size_bytes -= size_bytes
        self._budget.release(size_bytes)
