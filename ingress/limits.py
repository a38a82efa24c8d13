"""Limits on the memory that requests may cost, signed or not."""

from __future__ import annotations

from typing import Final

from server.problems import Problem, retry_after

BODIES_MAX_BYTES: Final = 64 * 1024 * 1024
BATCH_SHARE: Final = 2


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
