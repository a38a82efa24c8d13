"""Bodies part by part, and answers to requests whose body is not read to its end."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from litestar.types import Receive, Send

from server.problems import CLOSE, Problem

DRAIN_MAX_BYTES: Final = 1024 * 1024
DRAIN_TIMEOUT_SECONDS: Final = 1.0


class PeerGone(Exception):
    """The peer closed the connection, or was cut off, before its request was complete."""


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
