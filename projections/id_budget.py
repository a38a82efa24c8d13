"""One budget for the event ids that a worker keeps in memory, whatever the number of its partitions."""

from __future__ import annotations

import threading
from typing import Final

from runtime import metrics

DEFAULT_BYTES: Final = 352 * 1024 * 1024


class IdBudget:
    """Bytes that known ids may take. Ids of open ranges are counted as if the ranges were full, and always kept.

    Filters are kept only while there is room, and go where open ranges need it.

    Partitions' threads share it.
    """

    def __init__(self, total_bytes: int = DEFAULT_BYTES) -> None:
        self.total_bytes = total_bytes
        self.reserved_bytes = 0
        self._lock = threading.Lock()

    @property
    def is_exceeded(self) -> bool:
        """Whether more is counted than there is room for."""
        return self.reserved_bytes > self.total_bytes

    def try_reserve(self, size_bytes: int) -> bool:
        """Count bytes if there is room for them."""
        with self._lock:
            if self.reserved_bytes + size_bytes > self.total_bytes:
                return False
            self._count(size_bytes)
            return True

    def reserve(self, size_bytes: int) -> None:
        """Count bytes whether or not there is room."""
        with self._lock:
            self._count(size_bytes)

    def release(self, size_bytes: int) -> None:
        """Count them no longer."""
        with self._lock:
            self._count(-size_bytes)

    def _count(self, size_bytes: int) -> None:
        self.reserved_bytes += size_bytes
        metrics.WORKER_KNOWN_IDS_BYTES.set(self.reserved_bytes)
