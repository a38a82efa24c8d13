"""Bounds on what a request may cost before it is known to be signed."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from litestar.types import Receive

from ingress.problems import CLOSE, Problem, retry_after
from runtime import metrics

HELD_BODY_BYTES_MAX: Final = 64 * 1024 * 1024
DRAIN_BYTES_MAX: Final = 1024 * 1024
DRAIN_SECONDS: Final = 1.0


class PeerGone(Exception):
    """The peer closed the connection, or was cut off, before its request was complete."""


class Admission:
    """What all requests under way may hold together: their number, and the bytes of their bodies."""

    def __init__(self, requests_max: int, bytes_max: int = HELD_BODY_BYTES_MAX) -> None:
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._requests = 0
        self._bytes = 0

    def enter(self) -> None:
        """Let a request in; raises Problem (503) where too many are under way. `leave` ends it."""
        if self._requests >= self._requests_max:
            raise Problem("overloaded", "Many requests are under way.", headers=(retry_after(1), CLOSE))
        self._requests += 1

    def leave(self, held_bytes: int) -> None:
        """A request is answered; what it held of its body is free."""
        self._requests -= 1
        self._bytes -= held_bytes

    def hold(self, size_bytes: int) -> None:
        """Keep so much more of a body; raises Problem (503) where all bodies together are too large."""
        if self._bytes + size_bytes > self._bytes_max:
            raise Problem("overloaded", "Many large bodies arrive at once.", headers=(retry_after(1), CLOSE))
        self._bytes += size_bytes

    def free(self, size_bytes: int) -> None:
        """A part of a body is no longer kept."""
        self._bytes -= size_bytes

    def show(self) -> None:
        """Set the gauges; called now and then, not a request."""
        metrics.INGRESS_BODY_BYTES_HELD.set(self._bytes)
        metrics.INGRESS_REQUESTS_IN_FLIGHT.set(self._requests)


class BodyReader:
    """Reads request bodies in pieces, as far as `admission` has room for them."""

    def __init__(self, body_max_bytes: int, admission: Admission) -> None:
        self._body_max_bytes = body_max_bytes
        self._admission = admission

    async def read(self, receive: Receive, declared_length: bytes | None) -> bytes:
        """The whole body, whose bytes are held from now on: `leave` with as many.

        Raises Problem (413, 503) as soon as it is too much, PeerGone when the peer left, and holds nothing then.
        """
        if declared_length is not None and int(declared_length) > self._body_max_bytes:
            raise too_large(self._body_max_bytes)
        body, more = await piece(receive)
        if not more:
            if len(body) > self._body_max_bytes:
                raise too_large(self._body_max_bytes)
            self._admission.hold(len(body))
            return body
        return await self._read_rest(receive, body)

    async def _read_rest(self, receive: Receive, first: bytes) -> bytes:
        pieces, held, more = [first], 0, True
        try:
            self._admission.hold(len(first))
            held = len(first)
            while more:
                part, more = await piece(receive)
                if held + len(part) > self._body_max_bytes:
                    raise too_large(self._body_max_bytes)
                self._admission.hold(len(part))
                held += len(part)
                pieces.append(part)
        except BaseException:
            self._admission.free(held)
            raise
        return b"".join(pieces)


def too_large(max_bytes: int) -> Problem:
    """The answer to a body beyond its limit."""
    return Problem("body-too-large", f"At most {max_bytes} bytes are read.", headers=(CLOSE,))


async def drain(receive: Receive) -> None:
    """Read and drop what a refused peer still sends, for a while, so that it sees the answer and not a reset."""
    deadline = time.monotonic() + DRAIN_SECONDS
    left_bytes = DRAIN_BYTES_MAX
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            more = True
            while more and left_bytes > 0 and time.monotonic() < deadline:
                part, more = await piece(receive)
                left_bytes -= len(part)
    except (TimeoutError, PeerGone):
        return


async def piece(receive: Receive) -> tuple[bytes, bool]:
    """The next part of a body, and whether more comes; raises PeerGone."""
    message = await receive()
    if message["type"] != "http.request":
        raise PeerGone
    return message.get("body", b""), message.get("more_body", False)
