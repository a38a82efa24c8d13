"""The failure streak of an endpoint: its warnings, its disabling, and its recovery."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries import failure_streak
from deliveries.failure_streak import (
    WARNING_PERCENTS,
    FailureStreak,
    FailureWarning,
    StreakChange,
    StreakEnded,
    StreakPolicy,
    extend_streak,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = StreakPolicy(failing_time=timedelta(hours=100), attempts_min=10)


def run(attempts: list[tuple[float, bool]], policy: StreakPolicy = POLICY) -> tuple[FailureStreak, list[StreakChange]]:
    """The streak after attempts that ended so many hours after the start, and all changes on the way."""
    streak, changes = FailureStreak(), list[StreakChange]()
    for hours, succeeded in attempts:
        streak, more = extend_streak(streak, policy, succeeded=succeeded, now=NOW + timedelta(hours=hours))
        changes += more
    return streak, changes


def warnings(*percents: int) -> list[StreakChange]:
    return [FailureWarning(percent) for percent in percents]


def test_each_warning_is_given_once() -> None:
    """An endpoint that fails every hour is warned at 50, 70, 90 and 100 percent of the way, at the hour that it is."""
    given_at: list[tuple[int, StreakChange]] = []
    streak = FailureStreak()
    for hour in range(120):
        streak, changes = extend_streak(streak, POLICY, succeeded=False, now=NOW + timedelta(hours=hour))
        given_at += [(hour, change) for change in changes]
    assert given_at == [(percent, FailureWarning(percent)) for percent in WARNING_PERCENTS]


def test_a_burst_disables_nothing() -> None:
    """Any number of failures in a short time are far from the end, and are counted up to the least number."""
    streak, changes = run([(0.01 * number, False) for number in range(1000)])
    assert (streak.attempts, changes) == (POLICY.attempts_min, [])


def test_few_attempts_disable_nothing() -> None:
    """However long it takes, a few failures are no more than their share of the least number."""
    assert run([(1000.0 * number, False) for number in range(4)])[1] == []
    assert run([(1000.0 * number, False) for number in range(5)])[1] == warnings(50)
    assert run([(1000.0 * number, False) for number in range(10)])[1] == warnings(50, 70, 90, 100)


@pytest.mark.parametrize(("hours", "changes"), [(49.0, []), (50.0, [50]), (75.0, [50, 70]), (500.0, [50, 70, 90, 100])])
def test_a_long_silence_gives_what_was_passed(hours: float, changes: list[int]) -> None:
    """An attempt that fails long after the one before it gives all the warnings between, in order."""
    assert run([*((0.0, False) for _ in range(10)), (hours, False)])[1] == warnings(*changes)


def test_a_success_ends_the_streak() -> None:
    """After a warning the first success says that the endpoint recovered, once, and the way begins again."""
    failures = [(float(hour), False) for hour in range(60)]
    streak, changes = run([*failures, (60.0, True), (61.0, True)])
    assert changes == [*warnings(50), StreakEnded()]
    assert streak == FailureStreak()
    assert run([*failures, (60.0, True), *((60.0 + hour, False) for hour in range(50))])[1] == changes


def test_a_success_without_a_warning_says_nothing() -> None:
    """An endpoint that failed for a while and was not warned has not recovered from anything."""
    assert run([*((float(hour), False) for hour in range(40)), (40.0, True)])[1] == []


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans() | st.just(False)), max_size=60))
def test_any_course_warns_in_order(course: list[tuple[float, bool]]) -> None:
    """Between two successes each warning comes at most once and in order, with none left out; counts are bounded."""
    streak, hours, warned = FailureStreak(), 0.0, list[int]()
    for passed_hours, succeeded in course:
        hours += passed_hours
        streak, changes = extend_streak(streak, POLICY, succeeded=succeeded, now=NOW + timedelta(hours=hours))
        if succeeded:
            assert list(changes) == ([StreakEnded()] if warned else [])
            warned = []
        else:
            warned += [change.percent for change in changes if isinstance(change, FailureWarning)]
            assert warned == list(WARNING_PERCENTS[: len(warned)])
        assert 0 <= streak.attempts <= POLICY.attempts_min


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(failure_streak).failed == 0
