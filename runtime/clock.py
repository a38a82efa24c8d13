"""Time, passed in: code that needs the time takes a clock, so tests choose it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Return the time of day, in UTC."""

    def monotonic_seconds(self) -> float:
        """Return seconds since some fixed moment; never goes back. For ages and deadlines."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return time.monotonic()


class FixedClock:
    """A clock that moves only when a test moves it."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._seconds = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic_seconds(self) -> float:
        return self._seconds

    def set(self, now: datetime) -> None:
        """Move the time of day, and the monotonic clock by as much when it goes forward."""
        self._seconds += max(0.0, (now - self._now).total_seconds())
        self._now = now
