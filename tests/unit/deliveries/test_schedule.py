"""The retry schedule: what follows an attempt, when, and by which topic."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries import schedule
from deliveries.endpoints import RetrySchedule
from deliveries.outcomes import RETRY_AFTER_MAX_SECONDS, THROTTLING_STATUS_CODES, AttemptOutcome
from deliveries.schedule import (
    LONG_BACKOFF_SECONDS,
    RETRY_TOPICS,
    SHORT_BACKOFF_SECONDS,
    DeadLettered,
    Delivered,
    EndpointGone,
    RetryAt,
    decide,
    retry_waits_seconds,
    schedule_steps,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FAILED = AttemptOutcome(status_code=500)
VECTORS = json.loads((Path(schedule.__file__).parent / "vectors" / "retry_schedule.json").read_text("utf-8"))
DELAYS = dict(zip(RETRY_TOPICS, SHORT_BACKOFF_SECONDS, strict=True))

schedules = st.sampled_from(get_args(RetrySchedule))
failures = st.one_of(
    st.builds(AttemptOutcome, status_code=st.sampled_from([101, 301, 400, 404, 500, 599])),
    st.builds(AttemptOutcome, error_class=st.sampled_from(["timeout", "dns", "tls"])),
    st.builds(
        AttemptOutcome,
        status_code=st.sampled_from(sorted(THROTTLING_STATUS_CODES)),
        retry_after_seconds=st.none() | st.floats(min_value=0, max_value=RETRY_AFTER_MAX_SECONDS),
    ),
)


def seconds_until(decision: object) -> float:
    """The wait of a decision to retry."""
    assert isinstance(decision, RetryAt)
    return (decision.at - NOW).total_seconds()


def throttled(retry_after_seconds: float | None, code: int = 429) -> AttemptOutcome:
    return AttemptOutcome(status_code=code, retry_after_seconds=retry_after_seconds)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16)])
def test_the_backoff_doubles(attempt: int, seconds: int) -> None:
    """A failed attempt is followed by the next one after 1, 2, 4, 8 and 16 seconds, through the topic of that name."""
    retry = RetryAt(NOW + timedelta(seconds=seconds), f"genesis.deliveries.retry.{seconds}s", attempt + 1)
    assert decide("short", attempt, FAILED, NOW) == retry


def test_five_retries_at_most() -> None:
    """The sixth attempt is the last one: when it fails, the delivery is a dead letter."""
    assert decide("short", 6, FAILED, NOW) == DeadLettered(attempts=6)


@pytest.mark.parametrize("attempt", [1, 3, 6, 18])
def test_a_success_ends_it(attempt: int) -> None:
    """Whichever attempt succeeds, the last one too, the delivery is done."""
    assert decide("short", attempt, AttemptOutcome(status_code=204), NOW) == Delivered()


@pytest.mark.parametrize("attempt", [1, 6])
def test_a_gone_endpoint_makes_neither_retry_nor_dead_letter(attempt: int) -> None:
    """After 410 the endpoint is disabled, and the delivery waits for a replay, at the last attempt too."""
    assert decide("short", attempt, AttemptOutcome(status_code=410), NOW) == EndpointGone()


def test_a_redirect_is_retried() -> None:
    """A redirect is a failure like any other."""
    assert decide("short", 1, AttemptOutcome(status_code=307), NOW) == decide("short", 1, FAILED, NOW)


def test_a_throttled_attempt_counts() -> None:
    """A 429 is an attempt: the sixth one makes a dead letter, whatever time it asks for."""
    assert decide("short", 1, throttled(None), NOW) == decide("short", 1, FAILED, NOW)
    assert decide("short", 6, throttled(60.0), NOW) == DeadLettered(attempts=6)


@pytest.mark.parametrize(
    ("attempt", "retry_after", "seconds", "topic"),
    [
        (1, 0.0, 1, "genesis.deliveries.retry.1s"), (4, 2.0, 8, "genesis.deliveries.retry.8s"),
        (1, 3.0, 4, "genesis.deliveries.retry.4s"), (1, 16.0, 16, "genesis.deliveries.retry.16s"),
        (1, 16.5, 16.5, None), (5, 120.0, 120, None), (1, 3600.0, 3600, None),
    ],
)  # fmt: skip
def test_the_longer_of_backoff_and_retry_after(
    attempt: int, retry_after: float, seconds: float, topic: str | None
) -> None:
    """The wait is the longer of the two, rounded up to a topic's delay; over 16 seconds it is in Postgres, exact."""
    decision = decide("short", attempt, throttled(retry_after, 503), NOW)
    assert decision == RetryAt(NOW + timedelta(seconds=seconds), topic, attempt + 1)


def test_retry_after_counts_with_throttling_alone() -> None:
    """A Retry-After beside another code moves nothing."""
    outcome = AttemptOutcome(status_code=500, retry_after_seconds=600.0)
    assert decide("short", 1, outcome, NOW) == decide("short", 1, FAILED, NOW)


def test_the_long_schedule_begins_as_the_short_one() -> None:
    """After five retries it goes on in the Postgres schedule, with the sixth attempt."""
    for attempt in range(1, 6):
        assert decide("long", attempt, FAILED, NOW) == decide("short", attempt, FAILED, NOW)
    assert decide("long", 6, FAILED, NOW) == RetryAt(NOW + timedelta(minutes=1), None, 7)


def test_the_long_schedule_lasts_three_days() -> None:
    """Its waits grow, make up almost 72 hours and no more, and end with a dead letter."""
    assert list(LONG_BACKOFF_SECONDS) == sorted(LONG_BACKOFF_SECONDS)
    assert 71 * 3600 < sum(LONG_BACKOFF_SECONDS) <= 72 * 3600
    assert decide("long", 18, FAILED, NOW) == DeadLettered(attempts=18)


def test_a_schedule_may_change_under_way() -> None:
    """An attempt past the end of a schedule that was made shorter is the last; one that was made longer goes on."""
    assert decide("short", 9, FAILED, NOW) == DeadLettered(attempts=9)
    assert seconds_until(decide("long", 9, FAILED, NOW)) == 30 * 60


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_are_counted_from_one(attempt: int) -> None:
    """There is no attempt before the first."""
    with pytest.raises(ValueError, match="from 1"):
        decide("short", attempt, FAILED, NOW)


@given(schedules, st.integers(min_value=1, max_value=30), failures)
def test_a_failure_is_retried_until_the_schedule_ends(
    name: RetrySchedule, attempt: int, outcome: AttemptOutcome
) -> None:
    """Every failure is retried or dead; a retry waits as long as backoff and endpoint ask for, with the next number."""
    decision = decide(name, attempt, outcome, NOW)
    backoffs = retry_waits_seconds(name)
    if attempt > len(backoffs):
        assert decision == DeadLettered(attempt)
        return
    assert isinstance(decision, RetryAt)
    assert decision.attempt == attempt + 1
    assert seconds_until(decision) >= backoffs[attempt - 1]
    if outcome.status_code in THROTTLING_STATUS_CODES:
        assert seconds_until(decision) >= (outcome.retry_after_seconds or 0) - 1e-6


@given(schedules, st.integers(min_value=1, max_value=17), failures)
def test_a_topic_has_one_delay(name: RetrySchedule, attempt: int, outcome: AttemptOutcome) -> None:
    """Each record of a retry topic waits just as long as the others, so that its head is due first."""
    decision = decide(name, attempt, outcome, NOW)
    if isinstance(decision, RetryAt) and decision.topic is not None:
        assert seconds_until(decision) == DELAYS[decision.topic]
    elif isinstance(decision, RetryAt):
        assert seconds_until(decision) >= SHORT_BACKOFF_SECONDS[-1]


@pytest.mark.parametrize("name", get_args(RetrySchedule))
def test_the_vectors_hold_the_schedules(name: RetrySchedule) -> None:
    """The published table of a schedule is what the code does."""
    steps: list[dict[str, Any]] = VECTORS["schedules"][name]
    assert steps == [step._asdict() for step in schedule_steps(name)]


@pytest.mark.parametrize("vector", VECTORS["decisions"], ids=lambda vector: str(vector["about"]))
def test_the_vectors_hold_decisions(vector: dict[str, Any]) -> None:
    """Each published decision is the code's."""
    outcome = AttemptOutcome(**vector["outcome"])
    decision = decide(vector["schedule"], vector["attempt"], outcome, NOW)
    wait = seconds_until(decision) if isinstance(decision, RetryAt) else None
    topic = decision.topic if isinstance(decision, RetryAt) else None
    assert (type(decision).__name__, wait, topic) == (vector["decision"], vector["wait_seconds"], vector["topic"])


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(schedule).failed == 0
