"""The places of bulk loads: a few are published at a time, and no producer holds all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Final

from runtime import metrics
from server.problems import CLOSE, Problem, retry_after

PLACE_TIMEOUT_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 5


class BulkPlaces:
    """The places of a process. A load has one while its lines are published; while its body arrives it is counted."""

    def __init__(self, places_max: int) -> None:
        self._places_max = places_max
        self._producer_max = (places_max + 1) // 2
        self._arriving = 0
        self._published = 0
        self._held: Counter[str] = Counter()
        self._freed = asyncio.Event()

    @contextlib.contextmanager
    def arriving(self, producer: str) -> Iterator[None]:
        """Count a body that arrives. Raises Problem (503), before a byte is read, where it would arrive for nothing.

        `producer` is the one that the load names: its signature is not known yet. So bodies that arrive keep none from
        a place; `Arrivals` bounds them.
        """
        if self._is_full(producer):
            raise _no_place()
        self._arriving += 1
        self._update_gauge()
        try:
            yield
        finally:
            self._arriving -= 1
            self._update_gauge()

    @contextlib.asynccontextmanager
    async def publishing(self, producer: str) -> AsyncIterator[None]:
        """Hold a place for the verified producer's load; wait while others have all of them.

        Raises Problem (503) where the producer has its share, or where none is free in time.
        """
        if self._held[producer] >= self._producer_max:
            raise _no_place()
        self._held[producer] += 1
        try:
            await self._wait_free()
            self._published += 1
            self._update_gauge()
            try:
                yield
            finally:
                self._published -= 1
                self._update_gauge()
                self._freed.set()
        finally:
            self._held[producer] -= 1
            if not self._held[producer]:
                del self._held[producer]

    async def _wait_free(self) -> None:
        try:
            async with asyncio.timeout(PLACE_TIMEOUT_SECONDS):
                while self._published >= self._places_max:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise _no_place() from None

    def _is_full(self, producer: str) -> bool:
        return self._published >= self._places_max or self._held[producer] >= self._producer_max

    def _update_gauge(self) -> None:
        metrics.INGRESS_STREAMS.set(self._arriving + self._published)


def _no_place() -> Problem:
    return Problem("overloaded", "Many bulk loads are under way.", headers=(retry_after(RETRY_SECONDS), CLOSE))
