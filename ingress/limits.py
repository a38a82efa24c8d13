"""Limits on the memory and the time that requests may cost, signed or not."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from litestar.types import Receive, Send

from ingress.problems import CLOSE, Problem, retry_after

BODIES_MAX_BYTES: Final = 64 * 1024 * 1024
BATCH_SHARE: Final = 2
DRAIN_MAX_BYTES: Final = 1024 * 1024
DRAIN_TIMEOUT_SECONDS: Final = 1.0


class PeerGone(Exception):
    """The peer closed the connection, or was cut off, before its request was complete."""


class Admission:
    """The limits of all signed requests under way together: their number, and the bytes of their bodies.

    Batches may take one part in `BATCH_SHARE` of each, so that webhooks always have the rest.
    """

    def __init__(self, requests_max: int, bytes_max: int = BODIES_MAX_BYTES) -> None:
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._batches_max = max(1, requests_max // BATCH_SHARE)
        self._batch_max_bytes = bytes_max // BATCH_SHARE
        self._batches = 0
        self._batch_bytes = 0
        self.requests = 0
        self.size_bytes = 0

    def enter(self, size_bytes: int, *, batch: bool) -> None:
        """Count a request with its body; raises Problem (503) where too much is under way. Call `leave` at its end."""
        if self.requests >= self._requests_max or (batch and self._batches >= self._batches_max):
            raise Problem("overloaded", "Many requests are under way.", headers=(retry_after(1),))
        if self.size_bytes + size_bytes > self._bytes_max or (
            batch and self._batch_bytes + size_bytes > self._batch_max_bytes
        ):
            raise Problem("overloaded", "Many large bodies are under way.", headers=(retry_after(1),))
        self._change(1, size_bytes, batch)

    def leave(self, size_bytes: int, *, batch: bool) -> None:
        """End a request that was counted."""
        self._change(-1, -size_bytes, batch)

    def _change(self, requests: int, size_bytes: int, batch: bool) -> None:
        self.requests += requests
        self.size_bytes += size_bytes
        if batch:
            self._batches += requests
            self._batch_bytes += size_bytes


async def answer_problem(problem: Problem, receive: Receive, send: Send) -> None:
    """Answer a request with a problem. Where the connection closes behind it, drop the rest of the body first."""
    closing = CLOSE in problem.headers
    await send({"type": "http.response.start", "status": problem.status, "headers": problem.header_list()})
    await send({"type": "http.response.body", "body": problem.body(), "more_body": closing})
    if closing:
        await drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def drain(receive: Receive) -> None:
    """Read and drop the rest of a refused body, up to a size and a timeout, so that the peer sees the answer.

    Else it would see the reset of a connection that closes while bytes arrive.
    """
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    left_bytes = DRAIN_MAX_BYTES
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS):
            more = True
            while more and left_bytes > 0 and time.monotonic() < deadline:
                part, more = await receive_part(receive)
                left_bytes -= len(part)
    except (TimeoutError, PeerGone):
        return


async def receive_part(receive: Receive) -> tuple[bytes, bool]:
    """Receive the next part of a body, and whether more comes. Raises PeerGone."""
    message = await receive()
    if message["type"] != "http.request":
        raise PeerGone
    return message.get("body", b""), message.get("more_body", False)
