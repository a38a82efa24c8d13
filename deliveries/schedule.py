"""The retry schedule: what follows an attempt. Pure; the time is given.

    backoff after attempt n = 1, 2, 4, 8, 16 seconds: 2^(n-1), n from 1 to 5; then a dead letter

That is `short`, the default. With `long` twelve more follow: 1, 5, 15, 30 minutes, 1, 2, 4, 8 hours, and four times 14
hours. Nothing is added at random. A retry topic has one delay for all its records, so its head is always due first; a
wait that is none of these delays is rounded up to the next one, and a longer one is kept in Postgres as it is.

>>> for step in schedule_steps("short"):
...     print(f"{step.attempt} {step.wait_seconds:2} {step.elapsed_seconds:2} {step.topic}")
1  1  1 genesis.deliveries.retry.1s
2  2  3 genesis.deliveries.retry.2s
3  4  7 genesis.deliveries.retry.4s
4  8 15 genesis.deliveries.retry.8s
5 16 31 genesis.deliveries.retry.16s
>>> for step in schedule_steps("long")[5:]:
...     print(f"{step.attempt:2} {timedelta(seconds=step.wait_seconds)!s:>8} {step.elapsed_seconds / 3600:5.2f} h")
 6  0:01:00  0.03 h
 7  0:05:00  0.11 h
 8  0:15:00  0.36 h
 9  0:30:00  0.86 h
10  1:00:00  1.86 h
11  2:00:00  3.86 h
12  4:00:00  7.86 h
13  8:00:00 15.86 h
14 14:00:00 29.86 h
15 14:00:00 43.86 h
16 14:00:00 57.86 h
17 14:00:00 71.86 h
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import accumulate
from typing import Final, NamedTuple, TypeAlias, assert_never

import msgspec

from deliveries.endpoints import RetrySchedule
from deliveries.outcomes import AttemptOutcome, classify
from streams.topics import RETRY_TOPIC_DELAYS_SECONDS, RETRY_TOPICS

SHORT_BACKOFF_SECONDS: Final = RETRY_TOPIC_DELAYS_SECONDS
LONG_BACKOFF_SECONDS: Final = (
    *SHORT_BACKOFF_SECONDS,
    *(60 * minutes for minutes in (1, 5, 15, 30)),
    *(3600 * hours for hours in (1, 2, 4, 8, 14, 14, 14, 14)),
)


class Delivered(msgspec.Struct, frozen=True):
    """The delivery is done."""


class RetryAt(msgspec.Struct, frozen=True):
    """The delivery waits, and is attempted at this time."""

    at: datetime
    topic: str | None
    """The retry topic in which it waits; None for the schedule in Postgres."""
    attempt: int
    """The number of the attempt that it waits for."""


class DeadLettered(msgspec.Struct, frozen=True):
    """The delivery has used up its attempts: it becomes a dead letter."""

    attempts: int


class EndpointGone(msgspec.Struct, frozen=True):
    """The endpoint is to be disabled. Its deliveries, this one too, are neither retried nor dead."""


Decision: TypeAlias = Delivered | RetryAt | DeadLettered | EndpointGone


class ScheduleStep(NamedTuple):
    """The wait after a failed attempt, and the time since the first one if attempts took none."""

    attempt: int
    wait_seconds: int
    elapsed_seconds: int
    topic: str | None


def decide(schedule: RetrySchedule, attempt: int, outcome: AttemptOutcome, now: datetime) -> Decision:
    """Return what follows attempt number `attempt`, from 1, which ended `now`.

    Where the endpoint asks for time (Retry-After), the wait is the longer of that and the backoff. Raises ValueError
    for an attempt below 1. An attempt past the schedule's end, as after a change to a shorter one, is the last.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    >>> decide("short", 1, AttemptOutcome(status_code=500), noon)  # doctest: +NORMALIZE_WHITESPACE
    RetryAt(at=datetime.datetime(2026, 3, 1, 12, 0, 1, tzinfo=datetime.timezone.utc),
        topic='genesis.deliveries.retry.1s', attempt=2)
    >>> decide("short", 6, AttemptOutcome(error_class="timeout"), noon)
    DeadLettered(attempts=6)
    """
    if attempt < 1:
        raise ValueError("attempts are counted from 1")
    kind = classify(outcome)
    match kind:
        case "delivered":
            return Delivered()
        case "gone":
            return EndpointGone()
        case "failed":
            asked_seconds = 0.0
        case "throttled":
            asked_seconds = outcome.retry_after_seconds or 0.0
        case _:
            assert_never(kind)
    backoffs = retry_waits_seconds(schedule)
    if attempt > len(backoffs):
        return DeadLettered(attempt)
    topic, wait_seconds = _topic_of(max(asked_seconds, backoffs[attempt - 1]))
    return RetryAt(now + timedelta(seconds=wait_seconds), topic, attempt + 1)


def retry_waits_seconds(schedule: RetrySchedule) -> tuple[int, ...]:
    """Return the waits after the first, second and each further failed attempt."""
    match schedule:
        case "short":
            return SHORT_BACKOFF_SECONDS
        case "long":
            return LONG_BACKOFF_SECONDS
        case _:
            assert_never(schedule)


def schedule_steps(schedule: RetrySchedule) -> list[ScheduleStep]:
    """Return all waits of a schedule, for tables."""
    waits = retry_waits_seconds(schedule)
    return [
        ScheduleStep(attempt, wait, elapsed, _topic_of(wait)[0])
        for attempt, (wait, elapsed) in enumerate(zip(waits, accumulate(waits), strict=True), start=1)
    ]


def _topic_of(wait_seconds: float) -> tuple[str | None, float]:
    """Return the topic with the shortest delay that is no shorter than a wait, and that delay."""
    for topic, delay in zip(RETRY_TOPICS, SHORT_BACKOFF_SECONDS, strict=True):
        if wait_seconds <= delay:
            return topic, delay
    return None, wait_seconds
