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


class BodyReader:
    """Reads request bodies in pieces; all unfinished ones together hold at most `held_max_bytes`."""

    def __init__(self, body_max_bytes: int, held_max_bytes: int = HELD_BODY_BYTES_MAX) -> None:
        self._body_max_bytes = body_max_bytes
        self._held_max_bytes = held_max_bytes
        self._held_bytes = 0

    async def read(self, receive: Receive, declared_length: bytes | None) -> bytes:
        """The whole body. Raises Problem (413, 503) as soon as it is too much, PeerGone when the peer left."""
        if declared_length is not None and int(declared_length) > self._body_max_bytes:
            raise self._too_large()
        body, more = await _piece(receive)
        if not more:
            if len(body) > self._body_max_bytes:
                raise self._too_large()
            return body
        return await self._read_rest(receive, body)

    async def _read_rest(self, receive: Receive, first: bytes) -> bytes:
        pieces, held, more = [first], 0, True
        try:
            held += self._hold(len(first))
            while more:
                piece, more = await _piece(receive)
                if held + len(piece) > self._body_max_bytes:
                    raise self._too_large()
                held += self._hold(len(piece))
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            self._held_bytes -= held
            metrics.INGRESS_BODY_BYTES_HELD.set(self._held_bytes)

    def _hold(self, size_bytes: int) -> int:
        if self._held_bytes + size_bytes > self._held_max_bytes:
            raise Problem("overloaded", "Many large bodies arrive at once.", headers=(retry_after(1), CLOSE))
        self._held_bytes += size_bytes
        metrics.INGRESS_BODY_BYTES_HELD.set(self._held_bytes)
        return size_bytes

    def _too_large(self) -> Problem:
        return Problem("body-too-large", f"At most {self._body_max_bytes} bytes are read.", headers=(CLOSE,))


async def drain(receive: Receive) -> None:
    """Read and drop what a refused peer still sends, for a while, so that it sees the answer and not a reset."""
    deadline = time.monotonic() + DRAIN_SECONDS
    left_bytes = DRAIN_BYTES_MAX
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            more = True
            while more and left_bytes > 0 and time.monotonic() < deadline:
                piece, more = await _piece(receive)
                left_bytes -= len(piece)
    except (TimeoutError, PeerGone):
        return


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise PeerGone
    return message.get("body", b""), message.get("more_body", False)
