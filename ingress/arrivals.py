"""Bodies that are arriving, which nobody has signed yet: the bytes that all of them, and each address, may hold.

A signature can be checked when a body is whole. Until then anybody can have sent it, so its bytes count in a budget of
their own. Where that is full the oldest bodies of the address that holds most are refused, and the newest never waits:
honest bodies are whole within moments, and who wants to hold memory has to keep it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from litestar.types import Receive

from runtime import metrics
from server.bodies import receive_part
from server.problems import CLOSE, Problem, retry_after

UNSIGNED_MAX_BYTES: Final = 32 * 1024 * 1024
"""For all arriving bodies of one kind: webhooks have such a budget, and batches another one."""
ADDRESS_SHARE: Final = 4
"""An address may hold one part in so many."""
EVICT_TO: Final = 7 / 8
"""A full budget is emptied so far in one go, so that a flood does not look for a victim with each of its parts."""
REQUEST_BYTES: Final = 4 * 1024
"""What a request holds besides its body: a task, its headers, buffers."""


class Arrival:
    """One body that is arriving: the bytes that it holds, and the task that reads it."""

    __slots__ = ("address", "evicted", "size_bytes", "task")

    def __init__(self, address: str | None, size_bytes: int) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.task = asyncio.current_task()
        self.evicted = False


class Arrivals:
    """The arriving bodies of one kind. Not thread-safe: one an event loop."""

    def __init__(
        self, body_max_bytes: int, bytes_max: int = UNSIGNED_MAX_BYTES, *, request_bytes: int = REQUEST_BYTES
    ) -> None:
        """Let all bodies hold `bytes_max`, or more where an address could not have one body of the largest size.

        Each counts `request_bytes` besides its own.
        """
        self._request_bytes = request_bytes
        self._bytes_max = max(bytes_max, ADDRESS_SHARE * (body_max_bytes + request_bytes))
        self._address_max_bytes = self._bytes_max // ADDRESS_SHARE
        self._by_address: dict[str | None, dict[Arrival, None]] = {}
        self._address_bytes: dict[str | None, int] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_address.values()))

    @property
    def body_bytes(self) -> int:
        """The bytes of bodies alone."""
        return self.size_bytes - len(self) * self._request_bytes

    def begin(self, address: str | None) -> Arrival:
        """Count a body before its first byte. `address` None: its peer's address is not known, so it has no share.

        Call `end` when it is whole and its signature was checked, or when it will never be.
        """
        arrival = Arrival(address, self._request_bytes)
        self._make_room(arrival, self._request_bytes)
        self._by_address.setdefault(address, {})[arrival] = None
        self._count(address, self._request_bytes)
        return arrival

    def add(self, arrival: Arrival, size_bytes: int) -> None:
        """Count so much more of a body. Raises Problem (503) where no other body can make room for it."""
        self._make_room(arrival, size_bytes)
        arrival.size_bytes += size_bytes
        self._count(arrival.address, size_bytes)

    def end(self, arrival: Arrival) -> None:
        """Release what a body held; again changes nothing."""
        members = self._by_address.get(arrival.address, {})
        if arrival not in members:
            return
        del members[arrival]
        self._count(arrival.address, -arrival.size_bytes)
        if not members:
            del self._by_address[arrival.address], self._address_bytes[arrival.address]

    def whole(self, arrival: Arrival) -> None:
        """Keep a body that is whole from being refused for others while its signature is checked."""
        arrival.task = None

    def _count(self, address: str | None, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._address_bytes[address] = self._address_bytes.get(address, 0) + size_bytes

    def _make_room(self, arrival: Arrival, size_bytes: int) -> None:
        address = arrival.address
        if address is not None:
            over_bytes = self._address_bytes.get(address, 0) + size_bytes - self._address_max_bytes
            if over_bytes > 0 and not self._evict_from(address, over_bytes, arrival):
                raise _crowded("The bodies that arrive from this address hold all of its share.")
        if self.size_bytes + size_bytes <= self._bytes_max:
            return
        for heaviest in sorted(self._address_bytes, key=self._address_bytes.__getitem__, reverse=True):
            over_bytes = self.size_bytes + size_bytes - int(self._bytes_max * EVICT_TO)
            if over_bytes <= 0 or self._evict_from(heaviest, over_bytes, arrival):
                break
        if self.size_bytes + size_bytes > self._bytes_max:
            raise _crowded("Many large bodies arrive at once.")

    def _evict_from(self, address: str | None, over_bytes: int, newest: Arrival) -> bool:
        """Refuse the oldest bodies of an address until so many bytes are free; return whether they are."""
        for arrival in list(self._by_address.get(address, {})):
            if over_bytes <= 0:
                break
            if arrival is not newest and arrival.task is not None:
                arrival.evicted = True
                arrival.task.cancel()
                over_bytes -= arrival.size_bytes
                self.end(arrival)
                metrics.INGRESS_BODIES_EVICTED.inc()
        return over_bytes <= 0


class BodyReader:
    """Reader of unsigned request bodies up to a size, within the bytes that arriving bodies may hold."""

    def __init__(self, body_max_bytes: int, arrivals: Arrivals) -> None:
        self._body_max_bytes = body_max_bytes
        self._arrivals = arrivals

    def require_length(self, declared_length: bytes | None) -> None:
        """Raise Problem (413) where the declared length is over the limit."""
        if declared_length is not None and int(declared_length) > self._body_max_bytes:
            raise too_large(self._body_max_bytes)

    def require_size(self, body: bytes) -> None:
        """Raise Problem (413) where a body that has arrived is over the limit."""
        if len(body) > self._body_max_bytes:
            raise too_large(self._body_max_bytes)

    async def read(self, receive: Receive, arrival: Arrival) -> bytes:
        """Read a whole body and count its bytes from the first one. Raises as `read_into`."""
        parts: list[bytes] = []
        await self.read_into(parts.append, receive, arrival)
        return b"".join(parts)

    async def read_into(self, keep: Callable[[bytes], object], receive: Receive, arrival: Arrival) -> None:
        """Hand each part of a body to `keep`.

        Raises Problem (413) at the first byte too many, Problem (503) where others need the memory, and PeerGone when
        the connection closes.
        """
        size_bytes, more = 0, True
        try:
            while more:
                part, more = await receive_part(receive)
                size_bytes += len(part)
                if size_bytes > self._body_max_bytes:
                    raise too_large(self._body_max_bytes)
                self._arrivals.add(arrival, len(part))
                keep(part)
        except asyncio.CancelledError:
            if not arrival.evicted:
                raise
            _resume(asyncio.current_task())
            raise _crowded("This body took long to arrive, and others needed its memory.") from None
        self._arrivals.whole(arrival)


def too_large(max_bytes: int) -> Problem:
    """Return the answer to a body beyond its limit."""
    return Problem("body-too-large", f"At most {max_bytes} bytes are read.", headers=(CLOSE,))


def _crowded(why: str) -> Problem:
    return Problem("overloaded", why, headers=(retry_after(1), CLOSE))


def _resume(task: asyncio.Task[object] | None) -> None:
    """Take back the cancellation that ended the reading of a body: its request has an answer to send."""
    if task is not None:
        task.uncancel()
