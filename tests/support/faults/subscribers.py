"""Subscribers for fault tests: a server in a thread of its own, which remembers what came, and fails now and then."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web


class Subscribers:
    """What came, by path and `webhook-id`: how often at all, and how often it was accepted."""

    def __init__(self, seed: int, failing_share: float, failures_max: int | None) -> None:
        self.port = 0
        self.came: Counter[tuple[str, str]] = Counter()
        self.accepted: Counter[tuple[str, str]] = Counter()
        self._chance = random.Random(seed)
        self.failing_share = failing_share
        self._failures_max = failures_max

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Accept a request, or fail: only on paths that fail."""
        await request.read()
        key = request.path, request.headers["webhook-id"]
        self.came[key] += 1
        may_fail = request.path == "/failing" and (self._failures_max is None or self.came[key] <= self._failures_max)
        if may_fail and self._chance.random() < self.failing_share:
            return web.Response(status=500)
        self.accepted[key] += 1
        return web.Response(status=204)


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
