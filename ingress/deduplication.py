"""The cache of webhooks that came lately: a copy of a message is answered at once, with the first one's position.

It saves work and guarantees nothing: the partition's owner drops repeats exactly, however old. The cache is bounded in
entries and in age, and is empty when the process starts.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from streams.pending_publish import PendingPublish

ENTRIES_MAX: Final = 100_000
AGE_MAX_SECONDS: Final = 10 * 60.0
EVICTED_MAX: Final = 5_000
"""Entries that are evicted in one step of the event loop: a burst expires as one."""


class IdReused(Exception):
    """The same producer and id came with another body."""


class DeduplicationCache:
    """Pending publishes by event id; not thread-safe, one an event loop.

    Call `get`, then `put`, without an await between them, so that two copies of a message can't both be first.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX, age_max_seconds: float = AGE_MAX_SECONDS) -> None:
        self._entries_max = entries_max
        self._age_max_seconds = age_max_seconds
        # Not a dict, whose first key takes the longer to find the more were deleted before it.
        self._entries: OrderedDict[bytes, tuple[bytes, PendingPublish, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, event_id: bytes, digest: bytes, now_seconds: float) -> PendingPublish | None:
        """Return the publish of this message, or None where there is none or it failed: then the caller publishes it.

        A publish that is still pending is returned too, so that copies share one. Raises IdReused where the digest
        differs.
        """
        entry = self._entries.get(event_id)
        if entry is None:
            return None
        seen, publish, since_seconds = entry
        if now_seconds - since_seconds > self._age_max_seconds or publish.failed():
            del self._entries[event_id]
            return None
        if seen != digest:
            raise IdReused
        return publish

    def put(self, event_id: bytes, digest: bytes, publish: PendingPublish, now_seconds: float) -> None:
        """Keep a publish; the oldest entries are dropped where there are too many."""
        entries = self._entries
        while len(entries) >= self._entries_max:
            entries.popitem(last=False)
        entries[event_id] = (digest, publish, now_seconds)

    def evict_expired(self, now_seconds: float) -> bool:
        """Drop entries that are past their age, so many at most that nobody waits for it; return whether some are left.

        Call it every few seconds, until none is.
        """
        for _ in range(EVICTED_MAX):
            if not self._entries:
                return False
            oldest = next(iter(self._entries))
            if now_seconds - self._entries[oldest][2] <= self._age_max_seconds:
                return False
            del self._entries[oldest]
        return True
