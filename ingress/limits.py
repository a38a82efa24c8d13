"""Limits on the memory, the time and the log lines that requests may cost, signed or not."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from litestar.types import Receive

from ingress.problems import CLOSE, Problem, retry_after
from runtime import metrics

BODIES_MAX_BYTES: Final = 64 * 1024 * 1024
DRAIN_MAX_BYTES: Final = 1024 * 1024
DRAIN_TIMEOUT_SECONDS: Final = 1.0


class PeerGone(Exception):
    """The peer closed the connection, or was cut off, before its request was complete."""


class Admission:
    """The limits of all requests under way together: their number, and the bytes of their bodies."""

    def __init__(self, requests_max: int, bytes_max: int = BODIES_MAX_BYTES) -> None:
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._requests = 0
        self._bytes = 0

    def enter(self) -> None:
        """Count a request; raises Problem (503) where too many are under way. Call `leave` when it is answered."""
        if self._requests >= self._requests_max:
            raise Problem("overloaded", "Many requests are under way.", headers=(retry_after(1), CLOSE))
        self._requests += 1

    def leave(self, reserved_bytes: int) -> None:
        """End a request, and release what is still reserved for its body."""
        self._requests -= 1
        self._bytes -= reserved_bytes

    def reserve(self, size_bytes: int) -> None:
        """Reserve memory for so much more of a body; raises Problem (503) where all bodies together are too large."""
        if self._bytes + size_bytes > self._bytes_max:
            raise Problem("overloaded", "Many large bodies arrive at once.", headers=(retry_after(1), CLOSE))
        self._bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Release memory that was reserved and is no longer used."""
        self._bytes -= size_bytes

    def update_gauges(self) -> None:
        """Set the gauges; call it every few seconds, not with each request."""
        metrics.INGRESS_BODY_BYTES_HELD.set(self._bytes)
        metrics.INGRESS_REQUESTS_IN_FLIGHT.set(self._requests)


class BodyReader:
    """Reader of request bodies up to a size, and within the limits of all requests under way."""

    def __init__(self, body_max_bytes: int, admission: Admission) -> None:
        self._body_max_bytes = body_max_bytes
        self._admission = admission

    async def read(self, receive: Receive, declared_length: bytes | None) -> bytes:
        """Read a whole body, and reserve its bytes until `Admission.leave` is called with their number.

        Raises Problem (413, 503) at the first byte too many, and PeerGone when the connection closes; then nothing
        stays reserved.
        """
        if declared_length is not None and int(declared_length) > self._body_max_bytes:
            raise too_large(self._body_max_bytes)
        body, more = await receive_part(receive)
        if not more:
            if len(body) > self._body_max_bytes:
                raise too_large(self._body_max_bytes)
            self._admission.reserve(len(body))
            return body
        return await self._read_rest(receive, body)

    async def _read_rest(self, receive: Receive, first: bytes) -> bytes:
        parts, reserved_bytes, more = [first], 0, True
        try:
            self._admission.reserve(len(first))
            reserved_bytes = len(first)
            while more:
                part, more = await receive_part(receive)
                if reserved_bytes + len(part) > self._body_max_bytes:
                    raise too_large(self._body_max_bytes)
                self._admission.reserve(len(part))
                reserved_bytes += len(part)
                parts.append(part)
        except BaseException:
            self._admission.release(reserved_bytes)
            raise
        return b"".join(parts)


def too_large(max_bytes: int) -> Problem:
    """Return the answer to a body beyond its limit."""
    return Problem("body-too-large", f"At most {max_bytes} bytes are read.", headers=(CLOSE,))


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
