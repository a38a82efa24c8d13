"""The deduplication cache: copies share a publish, within bounds."""

from __future__ import annotations

import asyncio

import pytest

from ingress.deduplication import EVICTED_MAX, DeduplicationCache, IdReused
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition


def publish(offset: int | None = None, error: Exception | None = None) -> PendingPublish:
    answer: asyncio.Future[RecordPosition] = asyncio.get_running_loop().create_future()
    if error is not None:
        answer.set_exception(error)
    elif offset is not None:
        answer.set_result(RecordPosition("t", 0, offset))
    return PendingPublish(answer, 0)


async def test_copies_get_the_same_publish() -> None:
    """A message seen before gets the first one's publish, running or done; another body is refused."""
    cache = DeduplicationCache()
    first = publish()
    assert cache.get(b"a", b"1", 0) is None
    cache.put(b"a", b"1", first, 0)
    assert cache.get(b"a", b"1", 1) is first
    with pytest.raises(IdReused):
        cache.get(b"a", b"2", 1)


async def test_failures_are_dropped() -> None:
    """A publish that failed or was cancelled is tried again, with any body."""
    cache = DeduplicationCache()
    cache.put(b"a", b"1", publish(error=OSError()), 0)
    assert cache.get(b"a", b"2", 0) is None
    cancelled = publish()
    cancelled.answer.cancel()
    cache.put(b"b", b"1", cancelled, 0)
    assert cache.get(b"b", b"1", 0) is None


async def test_the_cache_is_bounded_in_entries_and_age() -> None:
    """The oldest entries are dropped, and none outlives its age."""
    cache = DeduplicationCache(entries_max=2, age_max_seconds=10)
    for number, name in enumerate((b"a", b"b", b"c")):
        cache.put(name, b"1", publish(number), now_seconds=number)
    assert (len(cache), cache.get(b"a", b"1", 3)) == (2, None)
    assert cache.get(b"c", b"1", 12) is not None
    assert cache.get(b"b", b"1", 12) is None
    cache.evict_expired(12)
    assert len(cache) == 1
    cache.evict_expired(13)
    assert len(cache) == 0


async def test_a_burst_expires_in_steps() -> None:
    """No call drops more entries than nobody waits for, and the last one says that none is left."""
    cache, copy = DeduplicationCache(age_max_seconds=10), publish(1)
    for number in range(2 * EVICTED_MAX + 1):
        cache.put(b"%d" % number, b"1", copy, 0)
    assert not cache.evict_expired(10)
    assert [cache.evict_expired(11) for _ in range(3)] == [True, True, False]
    assert len(cache) == 0


async def test_an_expired_entry_is_no_reuse_of_its_id() -> None:
    """At its age an entry still answers; past it, another body with its id is a first one."""
    cache = DeduplicationCache(age_max_seconds=10)
    first = publish(1)
    cache.put(b"a", b"1", first, 0)
    assert cache.get(b"a", b"1", 10) is first
    assert cache.get(b"a", b"2", 10.5) is None
    assert len(cache) == 0


async def test_a_full_cache_keeps_its_newest_entries() -> None:
    """It never has more entries than its bound, and the newest is always among them."""
    cache = DeduplicationCache(entries_max=3)
    for number in range(10):
        newest = publish(number)
        cache.put(b"%d" % number, b"1", newest, number)
        assert len(cache) <= 3
        assert cache.get(b"%d" % number, b"1", number) is newest
    assert [cache.get(b"%d" % number, b"1", 9) is not None for number in range(10)] == [False] * 7 + [True] * 3
