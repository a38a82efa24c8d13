"""The slices of one partition that wait for their transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from streams.batch import EventBatch
from streams.memory_budget import MemoryBudget


@dataclass(slots=True)
class WaitingSlice:
    """A slice and its bytes; the records before `start` are taken already."""

    batch: EventBatch
    size_bytes: int
    start: int = 0


class BatchQueue:
    """Slices in order; the bytes of each are reserved in the worker's budget until it is taken whole."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.records = 0
        self.size_bytes = 0
        self._budget = budget
        self._slices: deque[WaitingSlice] = deque()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._slices)

    async def wait(self) -> None:
        """Return once there is a slice."""
        await self._arrived.wait()

    def put(self, batch: EventBatch) -> None:
        """Append a slice."""
        waiting = WaitingSlice(batch, batch.size_bytes)
        self._slices.append(waiting)
        self.records += len(batch)
        self.size_bytes += waiting.size_bytes
        self._budget.reserve(waiting.size_bytes)
        self._arrived.set()

    def take(self, records_max: int | None) -> list[tuple[EventBatch, int]]:
        """Take out slices with up to this many records, cutting the last one; all of them where it is None.

        At least one slice comes, and of a slice at least one record. Each comes with its bytes, which are no longer
        reserved. It costs what is taken, however long the slice is that this is cut from.
        """
        taken: list[tuple[EventBatch, int]] = []
        room = self.records if records_max is None else records_max
        while self._slices and (room > 0 or records_max is None):
            taken.append(self._take(self._slices[0], room))
            room -= len(taken[-1][0])
        if not self._slices:
            self._arrived.clear()
        return taken

    def clear(self) -> None:
        """Drop all slices."""
        for waiting in self._slices:
            self._budget.release(waiting.size_bytes)
        self._slices.clear()
        self.records = self.size_bytes = 0
        self._arrived.clear()

    def _take(self, waiting: WaitingSlice, room: int) -> tuple[EventBatch, int]:
        """Take up to so many records of the first slice."""
        start, stop = waiting.start, min(waiting.start + room, len(waiting.batch))
        is_last = stop == len(waiting.batch)
        part = waiting.batch if start == 0 and is_last else waiting.batch.between(start, stop)
        size_bytes = waiting.size_bytes if part is waiting.batch else part.size_bytes
        self.records -= len(part)
        if is_last:
            self._slices.popleft()
            self.size_bytes -= waiting.size_bytes
            self._budget.release(waiting.size_bytes)
        else:
            waiting.start = stop
        return part, size_bytes
