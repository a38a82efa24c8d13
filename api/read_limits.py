"""Limits on what readers have under way: requests, queries and waiters, of each token and of all together."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from runtime import metrics
from runtime.settings import Settings
from server.problems import Problem, retry_after

LEFT_TO_OTHERS: Final = 2
"""Queries at a time that one token leaves to others, where there are enough."""


class ReadLimit:
    """A limit on one kind of thing under way. One an event loop."""

    def __init__(self, what: str, of_all: int, of_a_token: int) -> None:
        self._what = what
        self._of_all = of_all
        self._of_a_token = of_a_token
        self._by_token: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.count = 0

    @contextmanager
    def one_more(self, token: str) -> Iterator[None]:
        """Count one until the block ends. Raises Problem: too-many-requests (429), overloaded (503)."""
        if not self._has_room(token):
            raise self._refusal(token)
        self._begin(token)
        try:
            yield
        finally:
            self._end(token)

    @asynccontextmanager
    async def in_turn(self, token: str, wait_seconds: float) -> AsyncIterator[None]:
        """Count one until the block ends, once there is room for it. Raises Problem where there is none in time.

        Those for whom there is room have it in the order in which they came.
        """
        if self._has_room(token):
            self._begin(token)
        else:
            await self._wait_for_room(token, wait_seconds)
        try:
            yield
        finally:
            self._end(token)

    async def _wait_for_room(self, token: str, wait_seconds: float) -> None:
        """Return once this one is counted, which whoever makes room for it does."""
        waiting = token, asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(wait_seconds):
                await waiting[1]
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:  # it was counted just now
                self._end(token)
            if isinstance(error, TimeoutError):
                raise self._refusal(token) from error
            raise

    def _has_room(self, token: str) -> bool:
        return self.count < self._of_all and self._by_token[token] < self._of_a_token

    def _refusal(self, token: str) -> Problem:
        again = (retry_after(1),)
        if self._by_token[token] >= self._of_a_token:
            detail = f"The token has {self._of_a_token} {self._what} under way."
            return Problem("too-many-requests", detail, headers=again)
        return Problem("overloaded", f"Many {self._what} are under way.", headers=again)

    def _begin(self, token: str) -> None:
        self.count += 1
        self._by_token[token] += 1

    def _end(self, token: str) -> None:
        self.count -= 1
        self._by_token[token] -= 1
        if not self._by_token[token]:
            del self._by_token[token]
        for waiting in self._waiting:  # what has ended makes room for one, if for any
            if self._has_room(waiting[0]) and not waiting[1].done():
                self._waiting.remove(waiting)
                self._begin(waiting[0])
                waiting[1].set_result(None)
                return


def query_limit(settings: Settings) -> ReadLimit:
    """Return the limit on queries that run on one pool of connections.

    One connection is left to those who read tokens and checkpoints, and no token has the last two of the others: else
    one reader's slow queries would keep all others from being believed, or answered. With fewer, half of them: a reader
    that is alone is to be answered as fast as the database can.
    """
    of_all = max(1, settings.database_pool_size - 1)
    return ReadLimit("queries", of_all, max((of_all + 1) // 2, of_all - LEFT_TO_OTHERS))


def query_wait_seconds(settings: Settings) -> float:
    """Return how long a query waits for others to end."""
    return float(min(settings.api_query_timeout_seconds, settings.database_pool_wait_seconds))


class ReadLimits:
    """The limits of a process."""

    def __init__(self, settings: Settings) -> None:
        self.requests = ReadLimit("requests", settings.api_requests_max, settings.api_requests_per_token)
        self.waiters = ReadLimit("waiting requests", settings.api_waiters_max, settings.api_waiters_per_token)
        self.queries = query_limit(settings)

    def update_gauges(self) -> None:
        """Set the gauges of what is under way."""
        metrics.API_REQUESTS_IN_FLIGHT.set(self.requests.count)
        metrics.API_WAITERS.set(self.waiters.count)
