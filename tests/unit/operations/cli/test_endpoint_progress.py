"""How `plant endpoints show` says how an endpoint does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from deliveries.delivery_progress import BlockedEntity, EndpointProgress
from deliveries.failure_streak import FailureStreak, StreakPolicy
from operations.cli.endpoint_progress import progress_fields

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = StreakPolicy(failing_time=timedelta(hours=100), attempts_min=10)
FINE = EndpointProgress(streak=None, throttled_until=None, waiting=0, next_at=None, blocked=())


def test_an_endpoint_that_fails_says_how_far_it_is_on_the_way() -> None:
    """By the less of its time and its attempts, and never beyond the end."""
    streak = FailureStreak(began_at=NOW - timedelta(hours=60), attempts=10, warned_percent=50)
    failing = EndpointProgress(streak=streak, throttled_until=None, waiting=3, next_at=NOW, blocked=())
    fields = progress_fields(failing, POLICY, NOW, "json")
    assert (fields["percent_to_disabling"], fields["warned_percent"], fields["failed_attempts"]) == (60, 50, 10)
    assert progress_fields(failing, POLICY, NOW + timedelta(days=9), "json")["percent_to_disabling"] == 100
    assert progress_fields(failing, None, NOW, "json")["percent_to_disabling"] is None
    assert progress_fields(FINE, POLICY, NOW, "json")["percent_to_disabling"] == 0


def test_an_endpoint_that_asked_for_time_says_until_when() -> None:
    """Others say nothing of it."""
    throttled = msgspec.structs.replace(FINE, throttled_until=NOW)
    assert progress_fields(throttled, POLICY, NOW, "json")["throttled_until"] == NOW
    assert progress_fields(FINE, POLICY, NOW, "json")["throttled_until"] is None


def test_blocked_entities_are_named_in_a_line() -> None:
    """With the dead letter that has to be sent again."""
    blocked = BlockedEntity(entity_id=UUID(int=1), delivery_id=UUID(int=2), behind=7)
    fields = progress_fields(
        EndpointProgress(streak=None, throttled_until=None, waiting=7, next_at=None, blocked=(blocked,)),
        POLICY,
        NOW,
        "table",
    )
    assert fields["blocked_entities"] == f"{UUID(int=1)}: 7 behind the dead letter {UUID(int=2)}"
    assert progress_fields(FINE, POLICY, NOW, "table")["blocked_entities"] == ""
