"""How many events a second each producer may send: a token bucket a producer, which may go into debt.

A request is let in while there is a token, and then pays for all of its events. So a batch that is larger than the
bucket gets through, and who sent it waits until the debt is paid: the rate holds over time. Each process counts by
itself.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

IDLE_BUCKETS_MAX: Final = 10_000


class Bucket(msgspec.Struct):
    """Tokens at a time; both may be of a while ago."""

    tokens: float
    at_seconds: float


class Rates:
    """The buckets of all producers. Not thread-safe, one an event loop."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def wait_seconds(self, producer: str, rate_per_second: float, burst: int, now_seconds: float) -> float:
        """How long until the producer may send; 0: now.

        >>> rates = Rates()
        >>> rates.wait_seconds("p", 10, 5, 0.0)
        0.0
        >>> rates.pay("p", 15)
        >>> rates.wait_seconds("p", 10, 5, 0.0)
        1.1
        """
        bucket = self._buckets.get(producer)
        if bucket is None:
            if len(self._buckets) >= IDLE_BUCKETS_MAX:
                self._buckets.clear()  # full buckets all of them, or nearly: producers are known by their keys
            bucket = self._buckets[producer] = Bucket(float(burst), now_seconds)
        earned = (now_seconds - bucket.at_seconds) * rate_per_second
        bucket.tokens = min(float(burst), bucket.tokens + earned)
        bucket.at_seconds = now_seconds
        return 0.0 if bucket.tokens >= 1 else (1 - bucket.tokens) / rate_per_second

    def pay(self, producer: str, events: int) -> None:
        """Take tokens for events that were let in; `wait_seconds` was asked before."""
        self._buckets[producer].tokens -= events


def whole_seconds(seconds: float) -> int:
    """For Retry-After: up, and at least 1.

    >>> whole_seconds(0.02), whole_seconds(1.2)
    (1, 2)
    """
    return max(1, math.ceil(seconds))
