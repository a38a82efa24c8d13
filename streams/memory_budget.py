"""One budget for the records that wait in a worker, whatever the number of its partitions."""

from __future__ import annotations


class MemoryBudget:
    """Bytes that waiting records may take. Each partition has an equal share; the event loop alone changes it.

    Half of a share is for what waits, half for the batch that is being projected. A partition whose half is full is not
    fetched; once the whole budget is spent, none is.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.reserved_bytes = 0
        self._partitions = 1

    @property
    def is_spent(self) -> bool:
        """Whether nothing more is to be fetched now."""
        return self.reserved_bytes >= self.total_bytes

    @property
    def share_bytes(self) -> int:
        """A partition's share."""
        return self.total_bytes // self._partitions

    def divide(self, partitions: int) -> None:
        """Divide the budget by the number of partitions that are assigned."""
        self._partitions = max(1, partitions)

    def reserve(self, size_bytes: int) -> None:
        """Count bytes that are here, whether or not the budget has room for them."""
        self.reserved_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Count them no longer."""
        self.reserved_bytes -= size_bytes
