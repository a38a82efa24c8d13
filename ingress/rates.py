"""How many events a second each producer may send: a token bucket for each producer, which may go into debt.

A request is accepted while there is a token, and then consumes one for each of its events. So a batch that is larger
than the bucket is accepted, and its sender waits until the debt is gone: the rate holds over time. Each process counts
by itself.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

BUCKETS_MAX: Final = 10_000


class Bucket(msgspec.Struct):
    """The tokens of a producer as of a time."""

    tokens: float
    at_seconds: float


class Rates:
    """The buckets of all producers. Not thread-safe: one an event loop."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def wait_seconds(self, producer: str, rate_per_second: float, burst: int, now_seconds: float) -> float:
        """Return how long until the producer may send; 0: now.

        >>> rates = Rates()
        >>> rates.wait_seconds("p", 10, 5, 0.0)
        0.0
        >>> rates.consume("p", 15)
        >>> rates.wait_seconds("p", 10, 5, 0.0)
        1.1
        """
        bucket = self._buckets.get(producer)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._buckets.clear()  # full buckets all of them, or nearly: producers are known by their keys
            bucket = self._buckets[producer] = Bucket(float(burst), now_seconds)
        earned = (now_seconds - bucket.at_seconds) * rate_per_second
        bucket.tokens = min(float(burst), bucket.tokens + earned)
        bucket.at_seconds = now_seconds
        return 0.0 if bucket.tokens >= 1 else (1 - bucket.tokens) / rate_per_second

    def consume(self, producer: str, events: int) -> None:
        """Take tokens for events; call `wait_seconds` before."""
        self._buckets[producer].tokens -= events

    def restore(self, producer: str, events: int) -> None:
        """Give tokens back for events that were consumed and not stored by this request."""
        bucket = self._buckets.get(producer)
        if bucket is not None:
            bucket.tokens += events


def whole_seconds(seconds: float) -> int:
    """Return whole seconds for Retry-After: rounded up, and at least 1.

    >>> whole_seconds(0.02), whole_seconds(1.2)
    (1, 2)
    """
    return max(1, math.ceil(seconds))
