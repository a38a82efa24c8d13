"""The streaks of a partition's endpoints: what counts, and what a round has to write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deliveries.deliverer.attempt_records import Cancelled, DeliveryEnd, EndedDelivery, Postponed
from deliveries.deliverer.endpoint_streaks import NO_CHANGES, EndpointStreak, EndpointStreaks, succeeded_of
from deliveries.failure_streak import FailureStreak, FailureWarning, StreakEnded, StreakPolicy
from deliveries.schedule import DeadLettered, Delivered, EndpointGone, RetryAt
from tests.support.made_deliveries import made_delivery

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = StreakPolicy(failing_time=timedelta(hours=10), attempts_min=2)
FAILED = RetryAt(NOW, None, 2)


def ended(end: DeliveryEnd, hours: float = 0.0, **changes: Any) -> EndedDelivery:
    return EndedDelivery(delivery=made_delivery(1, **changes), end=end, began_at=NOW + timedelta(hours=hours))


ENDPOINT = ended(FAILED).delivery.endpoint_id


@pytest.mark.parametrize(
    ("end", "succeeded"),
    [
        (Delivered(), True),
        (FAILED, False),
        (DeadLettered(6), False),
        (EndpointGone(), None),
        (Postponed(NOW, "Its breaker is open."), None),
        (Postponed(None, "An earlier event of its entity waits."), None),
        (Cancelled("The endpoint is paused."), None),
    ],
)
def test_attempts_alone_count(end: DeliveryEnd, succeeded: bool | None) -> None:
    """Waits and what was given up say nothing of an endpoint, and a 410 disables by itself."""
    assert succeeded_of(ended(end)) is succeeded


@pytest.mark.parametrize("end", [Delivered(), FAILED, DeadLettered(6)])
def test_deliveries_that_tell_of_endpoints_do_not_count(end: DeliveryEnd) -> None:
    """Two endpoints that fail and get each other's events would make more and more of them."""
    assert succeeded_of(ended(end, type="plant.endpoint.warned")) is None


def test_nothing_is_written_for_an_endpoint_that_just_succeeds() -> None:
    """Which nearly all do."""
    streaks = EndpointStreaks(POLICY, {})
    for _ in range(3):
        streaks.note(ended(Delivered()), None)
    assert streaks.take_changes() is NO_CHANGES


def test_nothing_is_written_for_what_ends_in_the_round_that_it_began_in() -> None:
    """A failure between two successes of one round has no row."""
    streaks = EndpointStreaks(POLICY, {})
    streaks.note(ended(FAILED), None)
    streaks.note(ended(Delivered()), None)
    assert not streaks.take_changes()


def test_a_streak_is_written_as_it_grows_and_dropped_as_it_ends() -> None:
    """Up to the number that disabling takes; more failures at the same percentage write nothing."""
    streaks = EndpointStreaks(POLICY, {})
    streaks.note(ended(FAILED), None)
    assert streaks.take_changes().kept == {ENDPOINT: EndpointStreak(FailureStreak(began_at=NOW, attempts=1), None)}
    streaks.note(ended(FAILED, hours=1), None)
    assert streaks.take_changes().kept[ENDPOINT].streak.attempts == 2
    streaks.note(ended(FAILED, hours=2), None)
    assert not streaks.take_changes()
    streaks.note(ended(Delivered(), hours=3), None)
    changes = streaks.take_changes()
    assert (changes.kept, list(changes.ended), list(changes.notes)) == ({}, [ENDPOINT], [])
    assert not streaks.take_changes()


def test_warnings_disable_at_the_end() -> None:
    """Each is told once, with the time of the first failure; the last one disables."""
    streaks = EndpointStreaks(POLICY, {ENDPOINT: EndpointStreak(FailureStreak(began_at=NOW, attempts=1), None)})
    streaks.note(ended(FAILED, hours=7.5), None)
    changes = streaks.take_changes()
    assert [each.change for each in changes.notes] == [FailureWarning(50), FailureWarning(70)]
    assert {each.failing_since for each in changes.notes} == {NOW}
    assert changes.disabled == []
    streaks.note(ended(DeadLettered(6), hours=11), None)
    changes = streaks.take_changes()
    assert [each.change for each in changes.notes] == [FailureWarning(90), FailureWarning(100)]
    assert changes.disabled == [ENDPOINT]
    assert changes.notes[-1].why == "No attempt has succeeded since 2026-03-01T00:00:00Z."


def test_an_endpoint_that_was_warned_recovers() -> None:
    """Its recovery is told with the begin of what it recovered from, and its row goes."""
    warned = EndpointStreak(FailureStreak(began_at=NOW, attempts=2, warned_percent=50), None)
    streaks = EndpointStreaks(POLICY, {ENDPOINT: warned})
    streaks.note(ended(Delivered(), hours=6), None)
    changes = streaks.take_changes()
    assert [(each.change, each.failing_since) for each in changes.notes] == [(StreakEnded(), NOW)]
    assert list(changes.ended) == [ENDPOINT]


def test_enabling_ends_a_streak() -> None:
    """What failed before an operator enabled the endpoint is no reason to disable it again."""
    before = EndpointStreak(FailureStreak(began_at=NOW, attempts=2, warned_percent=100), None)
    streaks = EndpointStreaks(POLICY, {ENDPOINT: before})
    enabled_at = NOW + timedelta(hours=20)
    streaks.note(ended(FAILED, hours=21), enabled_at)
    changes = streaks.take_changes()
    began = FailureStreak(began_at=NOW + timedelta(hours=21), attempts=1)
    assert (changes.kept, list(changes.notes)) == ({ENDPOINT: EndpointStreak(began, enabled_at)}, [])


def test_a_success_after_enabling_is_no_recovery() -> None:
    """The enabling was told already."""
    before = EndpointStreak(FailureStreak(began_at=NOW, attempts=2, warned_percent=100), None)
    streaks = EndpointStreaks(POLICY, {ENDPOINT: before})
    streaks.note(ended(Delivered(), hours=21), NOW + timedelta(hours=20))
    changes = streaks.take_changes()
    assert (list(changes.ended), list(changes.notes)) == ([ENDPOINT], [])


def test_without_a_policy_nothing_is_kept() -> None:
    """An operator may have endpoints never disabled."""
    streaks = EndpointStreaks(None, {})
    streaks.note(ended(FAILED), None)
    assert streaks.take_changes() is NO_CHANGES
