"""The memory of large request heads, and of requests sent ahead of their answers, of all connections together.

A head of the usual size counts with its connection. A larger one holds up to 32 KiB of bytes, and Python's objects for
each of its fields, several hundred KiB where they are short. So large heads have one budget, in which the oldest that
still waits for its peer makes room. Requests that wait for the answers to those before them count there too, with what
has come of their bodies: nobody reads them yet.
"""

from __future__ import annotations

from typing import Final, Protocol

HEADS_MAX_BYTES: Final = 64 * 1024 * 1024
USUAL_HEAD_BYTES: Final = 2 * 1024
USUAL_FIELDS: Final = 32
FIELD_BYTES: Final = 128
"""Python's objects for a field: two byte strings and a pair."""


class HeadHolder(Protocol):
    """A connection that holds large heads."""

    @property
    def awaits_peer(self) -> bool:
        """Whether nobody has signed there, and the peer has not sent its request to the end."""


class LargeHeads:
    """The bytes that each connection holds for large heads. One a listener."""

    def __init__(self, bytes_max: int = HEADS_MAX_BYTES) -> None:
        self._bytes_max = bytes_max
        self._held: dict[HeadHolder, int] = {}
        self.size_bytes = 0

    def hold(self, holder: HeadHolder, size_bytes: int) -> HeadHolder | None:
        """Set how much a connection holds; return the one that has to go for it, or None where there is room.

        Call `hold` again once that one is gone.
        """
        self.size_bytes += size_bytes - self._held.pop(holder, 0)
        if size_bytes:
            self._held[holder] = size_bytes
        if self.size_bytes <= self._bytes_max:
            return None
        return next((each for each in self._held if each is not holder and each.awaits_peer), holder)

    def release(self, holder: HeadHolder) -> None:
        """Forget a connection."""
        self.size_bytes -= self._held.pop(holder, 0)


def is_usual(size_bytes: int, fields: int) -> bool:
    """Return whether a head counts with its connection alone."""
    return size_bytes <= USUAL_HEAD_BYTES and fields <= USUAL_FIELDS


def head_cost(size_bytes: int, fields: int) -> int:
    """Return the memory of a head in bytes.

    >>> head_cost(32 * 1024, 6_500)
    864768
    """
    return size_bytes + FIELD_BYTES * fields
