"""Deadlines of many futures after the same time, with one timer: a tenth of the cost of a timeout for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Deadlines for waiters on shared futures: each waits up to `seconds`; `expired()` makes the error it then gets."""

    def __init__(self, seconds: float, expired: Callable[[], Exception]) -> None:
        self._seconds = seconds
        self._expired = expired
        self._waiting: deque[tuple[float, asyncio.Future[T]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, shared: asyncio.Future[T]) -> T:
        """Return the shared future's result. Neither giving up nor cancellation touches the shared future."""
        if shared.done():
            return shared.result()
        loop = shared.get_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        pass_on = partial(_pass_on, waiter)
        shared.add_done_callback(pass_on)
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        deadline = loop.time() + self._seconds
        waiting.append((deadline, waiter))
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire, loop)
        try:
            return await waiter
        finally:
            shared.remove_done_callback(pass_on)  # it may be shared for as long as Kafka is away

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, now = self._waiting, loop.time()
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now):
            waiter = waiting.popleft()[1]
            if not waiter.done():
                waiter.set_exception(self._expired())
        self._timer = loop.call_at(waiting[0][0], self._expire, loop) if waiting else None


def _pass_on(waiter: asyncio.Future[T], shared: asyncio.Future[T]) -> None:
    if waiter.done():
        return
    if shared.cancelled():
        waiter.cancel()
        return
    error = shared.exception()
    if error is None:
        waiter.set_result(shared.result())
    else:
        waiter.set_exception(error)
