"""The pace of `plant publish`: no faster than its producer's policy lets it send, as ingress counts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final, TypeVar

import msgspec

from ingress.producers import StoredProducer
from ingress.rates import Rates
from runtime.clock import Clock, SystemClock
from runtime.settings import Settings

TURN_EVERY_EVENTS: Final = 256
_BUCKET: Final = "file"

Item = TypeVar("Item")


class Pace(msgspec.Struct, frozen=True):
    """So many events a second, once so many have gone at once."""

    rate_per_second: float
    burst: int

    def least_seconds(self, count: int) -> float:
        """Return how long so many events take at least.

        >>> Pace(10, 100).least_seconds(150)
        5.0
        """
        return max(0, count - self.burst) / self.rate_per_second


def pace_of(policy: StoredProducer | None, settings: Settings) -> Pace | None:
    """Return a producer's pace, with ingress's defaults; None for one that ingress does not know."""
    if policy is None:
        return None
    return Pace(
        settings.ingress_producer_rate_per_second if policy.rate_per_second is None else policy.rate_per_second,
        settings.ingress_producer_burst if policy.burst is None else policy.burst,
    )


async def paced(
    items: Iterable[Item],
    pace: Pace | None,
    clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Item]:
    """Yield each item when the pace allows it; with no pace at once. Others have their turn in between."""
    clock, rates = clock or SystemClock(), Rates()
    for count, item in enumerate(items, 1):
        if pace is not None:
            while seconds := rates.wait_seconds(_BUCKET, pace.rate_per_second, pace.burst, clock.monotonic_seconds()):
                await sleep(seconds)
            rates.consume(_BUCKET, 1)
        yield item
        if count % TURN_EVERY_EVENTS == 0:
            await sleep(0)
