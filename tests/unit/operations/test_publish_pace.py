"""A file goes no faster than its producer may send, by an injected clock."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta

import pytest

from ingress.producers import StoredProducer
from operations import publish_pace
from operations.publish_pace import Pace, pace_of, paced
from runtime.clock import FixedClock
from runtime.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)


async def times(count: int, pace: Pace | None) -> list[float]:
    """The second at which each of so many items goes."""
    clock = FixedClock(START)

    async def sleep(seconds: float) -> None:
        if seconds:
            clock.set(clock.now() + timedelta(seconds=seconds, microseconds=1))

    return [clock.monotonic_seconds() async for _ in paced(range(count), pace, clock, sleep)]


async def test_the_burst_goes_at_once_and_then_the_rate_counts() -> None:
    """Ten a second after five at once."""
    seconds = await times(25, Pace(10, 5))
    assert seconds[:5] == [0.0] * 5
    assert seconds[5:] == pytest.approx([number / 10 for number in range(1, 21)], abs=1e-3)


@pytest.mark.parametrize("pace", [None, Pace(1e9, 1000)])
async def test_without_a_pace_nothing_waits(pace: Pace | None) -> None:
    """A producer that ingress does not know has no rate."""
    assert (await times(1000, pace))[-1] == 0.0


def test_a_pace_is_the_policy_with_the_defaults_of_ingress() -> None:
    """Of a producer that is known; a slow one is not made fast by the burst of others."""
    settings = Settings(ingress_producer_rate_per_second=7.0, ingress_producer_burst=8)
    known = StoredProducer(
        name="genesis",
        event_types=None,
        rate_per_second=None,
        burst=3,
        binary_mode=False,
        created_at=None,
        disabled_at=None,
        active_keys=1,
        pending_keys=0,
    )
    assert pace_of(known, settings) == Pace(7.0, 3)
    assert pace_of(None, settings) is None


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(publish_pace).failed == 0
