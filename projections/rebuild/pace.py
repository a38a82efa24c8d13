"""The pace of a rebuild: a bound on events a second, which all of its threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

CHUNK_RECORDS: Final = 200_000
"""Records that are folded in one transaction, where no rate is set."""

CHUNK_RECORDS_MIN: Final = 100

CHUNK_OFFSETS: Final = 1_000_000
"""Offsets of a chunk, however few of them a read model reads, where no rate is set."""


class RebuildPace:
    """Says how long to wait after a chunk, so that the chunks of all threads keep to a rate.

    >>> pace = RebuildPace(1_000, now=lambda: 0.0)
    >>> pace.wait_seconds(500), pace.wait_seconds(500)
    (0.5, 1.0)
    """

    def __init__(self, events_per_second: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = events_per_second
        self._now = now
        self._due_at = now()
        self._lock = threading.Lock()

    @property
    def chunk_records(self) -> int:
        """Records of a chunk: what the rate allows in a second, so that nobody waits long, within bounds.

        >>> RebuildPace(None).chunk_records, RebuildPace(5_000).chunk_records, RebuildPace(1).chunk_records
        (200000, 5000, 100)
        """
        return CHUNK_RECORDS if self._rate is None else max(CHUNK_RECORDS_MIN, min(CHUNK_RECORDS, self._rate))

    @property
    def chunk_offsets(self) -> int:
        """Offsets of a chunk: with a rate as many as records, since it is offsets that are counted.

        >>> RebuildPace(None).chunk_offsets, RebuildPace(5_000).chunk_offsets
        (1000000, 5000)
        """
        return CHUNK_OFFSETS if self._rate is None else self.chunk_records

    def wait_seconds(self, events: int) -> float:
        """Count events that were folded just now, and return the seconds to wait before the next chunk."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._now()
            self._due_at = max(self._due_at, now) + events / self._rate
            return self._due_at - now
