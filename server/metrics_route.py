"""The route `/metrics` of an admin listener."""

from __future__ import annotations

import asyncio

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


class SharedMetrics:
    """The metrics as Prometheus text, made in a thread. Requests that wait share what is made next."""

    def __init__(self) -> None:
        self._making = asyncio.Lock()
        self._started = 0
        self._text = b""

    async def make(self) -> bytes:
        """Return a text that was begun after this call."""
        before = self._started
        async with self._making:
            if self._started <= before:
                self._started += 1
                try:
                    self._text = await asyncio.to_thread(generate_latest)
                except BaseException:
                    self._started -= 1  # those that wait make their own
                    raise
            return self._text


def metrics_route() -> HTTPRouteHandler:
    """Return the route."""
    text = SharedMetrics()

    @get("/metrics", media_type="text/plain")
    async def metrics() -> Response[bytes]:
        """Return the metrics of this process as Prometheus text."""
        return Response(await text.make(), headers={"content-type": CONTENT_TYPE_LATEST})

    return metrics
