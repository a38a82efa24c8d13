"""Subscribers for fault tests: a server in a thread of its own, which remembers what came, and fails now and then."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from aiohttp import web

REFUSED_ONE_IN = 32
"""Deliveries of which `/refusing` refuses one for ever.

Few enough: a new owner begins with the retries that are due, and where most of these fail, the endpoint's breaker
opens, and each probe then may be a delivery that is refused again.
"""


class ReceivedRequest(NamedTuple):
    """A request that came whole: when, in seconds since 1970, and whether it was accepted."""

    came_at: float
    path: str
    delivery: str
    """The `webhook-id`."""
    accepted: bool


class Subscribers:
    """What came, by path and `webhook-id`: how often at all, and how often it was accepted."""

    def __init__(self, seed: int, failing_share: float, failures_max: int | None) -> None:
        self.port = 0
        self.came: Counter[tuple[str, str]] = Counter()
        self.accepted: Counter[tuple[str, str]] = Counter()
        self.requests: list[ReceivedRequest] = []
        self.refused: set[str] = set()
        """The ids of the deliveries that are refused for ever."""
        self._chance = random.Random(seed)
        self.failing_share = failing_share
        self._failures_max = failures_max
        self._relents = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Accept a request, or fail: only on paths that fail or refuse."""
        came_at = time.time()
        await request.read()
        key = request.path, request.headers["webhook-id"]
        self.came[key] += 1
        accepted = not self._fails(*key)
        self.accepted.update([key] if accepted else [])
        self.requests.append(ReceivedRequest(came_at, *key, accepted))
        return web.Response(status=204 if accepted else 500)

    def relent(self) -> None:
        """Accept whatever has not been refused for ever by now."""
        self.failing_share, self._relents = 0.0, True

    def ids_at(self, path: str) -> set[str]:
        """Return the ids of the deliveries that came to a path."""
        return {delivery for where, delivery in self.came if where == path}

    def accepted_at(self, path: str) -> set[str]:
        """Return the ids of those that were accepted there."""
        return {delivery for where, delivery in self.accepted if where == path}

    def _fails(self, path: str, delivery: str) -> bool:
        if path not in ("/failing", "/refusing"):
            return False
        if path == "/refusing" and not self._relents and zlib.crc32(delivery.encode()) % REFUSED_ONE_IN == 0:
            self.refused.add(delivery)
        if delivery in self.refused:
            return True
        may_fail = self._failures_max is None or self.came[path, delivery] <= self._failures_max
        return may_fail and self._chance.random() < self.failing_share


@contextmanager
def subscribers(seed: int, failing_share: float = 0.2, failures_max: int | None = None) -> Iterator[Subscribers]:
    """Serve on any port of the loopback interface until the block ends.

    With `failures_max` only the first so many requests of a delivery may fail: none of them becomes a dead letter.
    """
    made = Subscribers(seed, failing_share, failures_max)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        runner = web.ServerRunner(web.Server(made.handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="subscribers")
    thread.start()
    ready.wait()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
