"""The memory of answers that peers do not read, of all connections together.

An answer is written at once, and what its peer has not taken waits in this process: for as long as its connection may
be idle, and a page of rows has megabytes. So all of them have one budget, and the address that holds most of it makes
room, by its oldest connection.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Generic, TypeVar

UNREAD_ANSWERS_MAX_BYTES: Final = 128 * 1024 * 1024

Holder = TypeVar("Holder")


class UnreadAnswers(Generic[Holder]):
    """The bytes that wait for each connection's peer. One a listener."""

    def __init__(self, bytes_max: int = UNREAD_ANSWERS_MAX_BYTES) -> None:
        self._bytes_max = bytes_max
        self._held: dict[Holder, tuple[str, int]] = {}
        self.size_bytes = 0

    def hold(self, holder: Holder, address: str, size_bytes: int) -> list[Holder]:
        """Set how much waits for the peer of a connection; return those that go for it, which count no more."""
        self.release(holder)
        self._held[holder] = address, size_bytes
        self.size_bytes += size_bytes
        going = []
        while self.size_bytes > self._bytes_max:
            going.append(self._oldest_of_largest())
            self.release(going[-1])
        return going

    def release(self, holder: Holder) -> None:
        """Forget a connection."""
        _, size_bytes = self._held.pop(holder, ("", 0))
        self.size_bytes -= size_bytes

    def _oldest_of_largest(self) -> Holder:
        sums: Counter[str] = Counter()
        for address, size_bytes in self._held.values():
            sums[address] += size_bytes
        ((largest, _),) = sums.most_common(1)
        return next(holder for holder, (address, _) in self._held.items() if address == largest)
