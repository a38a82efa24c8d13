"""Limits on what readers have under way: requests and waiters, of each token and of all together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from runtime import metrics
from runtime.settings import Settings
from server.problems import Problem, retry_after


class ReadLimit:
    """A limit on one kind of thing under way. One an event loop."""

    def __init__(self, what: str, of_all: int, of_a_token: int) -> None:
        self._what = what
        self._of_all = of_all
        self._of_a_token = of_a_token
        self._by_token: Counter[str] = Counter()
        self._room = asyncio.Event()
        self.count = 0

    @contextmanager
    def one_more(self, token: str) -> Iterator[None]:
        """Count one until the block ends. Raises Problem: too-many-requests (429), overloaded (503)."""
        if self._by_token[token] >= self._of_a_token:
            detail = f"The token has {self._of_a_token} {self._what} under way."
            raise Problem("too-many-requests", detail, headers=(retry_after(1),))
        if self.count >= self._of_all:
            raise Problem("overloaded", f"Many {self._what} are under way.", headers=(retry_after(1),))
        self.count += 1
        self._by_token[token] += 1
        try:
            yield
        finally:
            self.count -= 1
            self._by_token[token] -= 1
            if not self._by_token[token]:
                del self._by_token[token]
            self._room.set()

    @asynccontextmanager
    async def in_turn(self, token: str, wait_seconds: float) -> AsyncIterator[None]:
        """Count one until the block ends, once there is room for it. Raises Problem where there is none in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                while self.count >= self._of_all or self._by_token[token] >= self._of_a_token:
                    self._room.clear()
                    await self._room.wait()
        with self.one_more(token):
            yield


class ReadLimits:
    """The limits of a process."""

    def __init__(self, settings: Settings) -> None:
        self.requests = ReadLimit("requests", settings.api_requests_max, settings.api_requests_per_token)
        self.waiters = ReadLimit("waiting requests", settings.api_waiters_max, settings.api_waiters_per_token)

    def update_gauges(self) -> None:
        """Set the gauges of what is under way."""
        metrics.API_REQUESTS_IN_FLIGHT.set(self.requests.count)
        metrics.API_WAITERS.set(self.waiters.count)
