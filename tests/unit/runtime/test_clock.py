"""The clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from runtime.clock import FixedClock, SystemClock

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def test_clocks_tell_the_time() -> None:
    """The system's clock is in UTC; the fixed one moves when it is set."""
    assert SystemClock().now().tzinfo is UTC
    clock = FixedClock(NOW)
    clock.set(NOW + timedelta(seconds=5))
    assert (clock.now(), clock.monotonic_seconds()) == (NOW + timedelta(seconds=5), 5)
