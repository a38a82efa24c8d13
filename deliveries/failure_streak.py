"""The failure streak of an endpoint: attempts that failed without one success between them, up to its disabling. Pure.

    percent of the way = 100 * min(time since the first failure / failing_time, attempts / attempts_min)

Both have to be reached: neither a burst of retries in a minute nor one attempt a day disables an endpoint by itself.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from runtime.settings import Settings

WARNING_PERCENTS: Final = (50, 70, 90, 100)
"""How far on the way to disabling a warning is given; at 100 the endpoint is to be disabled."""


class StreakPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long an endpoint may fail without a success, and how many attempts that takes at least."""

    failing_time: timedelta = timedelta(days=5)
    attempts_min: int = 50


def make_streak_policy(settings: Settings) -> StreakPolicy | None:
    """Return the policy of the settings; None where no endpoint is to be disabled for its failures."""
    if not settings.deliveries_disable_after_hours:
        return None
    return StreakPolicy(
        failing_time=timedelta(hours=settings.deliveries_disable_after_hours),
        attempts_min=settings.deliveries_disable_after_attempts,
    )


class FailureStreak(msgspec.Struct, frozen=True, kw_only=True):
    """The failures since the last success; a new one has none, and so has one that was enabled again."""

    began_at: datetime | None = None
    attempts: int = 0
    """Counted up to the policy's `attempts_min`."""
    warned_percent: int = 0
    """The last warning that was given."""


class FailureWarning(msgspec.Struct, frozen=True):
    """The endpoint has come this far on the way to disabling; at 100 it is to be disabled."""

    percent: int


class StreakEnded(msgspec.Struct, frozen=True):
    """The endpoint took a delivery after it had been warned."""


StreakChange: TypeAlias = FailureWarning | StreakEnded


def percent_of(streak: FailureStreak, policy: StreakPolicy, now: datetime) -> float:
    """Return how far on the way to disabling an endpoint is: the formula above."""
    if streak.began_at is None:
        return 0.0
    return 100 * min((now - streak.began_at) / policy.failing_time, streak.attempts / policy.attempts_min)


def extend_streak(
    streak: FailureStreak, policy: StreakPolicy, *, succeeded: bool, now: datetime
) -> tuple[FailureStreak, tuple[StreakChange, ...]]:
    """Return the streak after an attempt that ended `now`, and what has changed for the endpoint by it.

    Each warning is given once a streak, in order: an attempt after a long silence may give several.

    >>> from datetime import UTC
    >>> policy = StreakPolicy(attempts_min=2)
    >>> first, changes = extend_streak(FailureStreak(), policy, succeeded=False, now=datetime(2026, 3, 1, tzinfo=UTC))
    >>> changes
    ()
    >>> second, changes = extend_streak(first, policy, succeeded=False, now=datetime(2026, 3, 4, 12, tzinfo=UTC))
    >>> [change.percent for change in changes]
    [50, 70]
    >>> extend_streak(second, policy, succeeded=True, now=datetime(2026, 3, 5, tzinfo=UTC))[1]
    (StreakEnded(),)
    """
    if succeeded:
        return FailureStreak(), (StreakEnded(),) if streak.warned_percent else ()
    began_at = streak.began_at or now
    attempts = min(streak.attempts + 1, policy.attempts_min)
    percent = percent_of(FailureStreak(began_at=began_at, attempts=attempts), policy, now)
    reached = [each for each in WARNING_PERCENTS if streak.warned_percent < each <= percent]
    warned_percent = reached[-1] if reached else streak.warned_percent
    extended = FailureStreak(began_at=began_at, attempts=attempts, warned_percent=warned_percent)
    return extended, tuple(FailureWarning(each) for each in reached)
