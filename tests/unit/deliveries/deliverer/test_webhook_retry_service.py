"""What follows from an attempt: once, from the schedule of the endpoint as it was when the attempt began."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deliveries.attempts import Attempt
from deliveries.deliverer.attempt_records import EndedDelivery, Postponed
from deliveries.deliverer.delivery_process import DeliveryProcess
from deliveries.deliverer.webhook_retry_service import UNUSABLE_SECONDS, WebhookRetryService
from deliveries.endpoints import EndpointConfiguration
from deliveries.outcomes import AttemptOutcome
from deliveries.schedule import DeadLettered, Delivered, EndpointGone, RetryAt
from runtime.clock import FixedClock
from streams.topics import RETRY_TOPICS
from tests.support.made_deliveries import made_delivery

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DELIVERY = made_delivery(1)
ID = DELIVERY.delivery_id


class Attempted:
    """A service whose clock stands still, and what it told, in order."""

    def __init__(self, *, ordered: bool = False, **configuration: Any) -> None:
        self.told: list[EndedDelivery | bytes] = []
        process = SimpleNamespace(clock=FixedClock(NOW), endpoints=SimpleNamespace(is_ordered=lambda _: ordered))
        self.service = WebhookRetryService(cast(DeliveryProcess, process), self.told.append, self.told.append)
        self.configuration = EndpointConfiguration(url="https://example.com/", event_types=("*",), **configuration)

    def begin(self, attempt: int = 1) -> None:
        self.service.begin(made_delivery(1, attempt=attempt), self.configuration, NOW - timedelta(seconds=3))

    def end(self, attempt: int = 1, status_code: int = 500, retry_after_seconds: float | None = None) -> EndedDelivery:
        """Begin and end an attempt, and return what it is told to be."""
        self.begin(attempt)
        outcome = AttemptOutcome(status_code=status_code, retry_after_seconds=retry_after_seconds)
        decision = self.service.schedule_retry(ID, Attempt(outcome=outcome, duration_seconds=0.0))
        told = self.told[-1]
        assert isinstance(told, EndedDelivery)
        assert told.end == decision
        return told


def test_five_retries_and_then_a_dead_letter() -> None:
    """After 1, 2, 4, 8 and 16 s, each in the topic of its delay, from when the attempt ended."""
    attempted = Attempted()
    waits = [
        RetryAt(NOW + timedelta(seconds=seconds), topic, number + 1)
        for number, (seconds, topic) in enumerate(zip((1, 2, 4, 8, 16), RETRY_TOPICS, strict=True), start=1)
    ]
    assert [attempted.end(number).end for number in range(1, 7)] == [*waits, DeadLettered(6)]
    assert len(attempted.told) == 6


@pytest.mark.parametrize("status_code", [200, 204, 299])
def test_what_was_accepted_is_done(status_code: int) -> None:
    """Whatever its attempt's number."""
    assert Attempted().end(5, status_code).end == Delivered()


def test_a_long_schedule_goes_on() -> None:
    """After the five quick retries, in Postgres."""
    attempted = Attempted(retry_schedule="long")
    assert attempted.end(6).end == RetryAt(NOW + timedelta(seconds=60), None, 7)
    assert attempted.end(18).end == DeadLettered(18)


@pytest.mark.parametrize(
    ("asked_seconds", "topic", "wait_seconds"),
    [(0.5, 0, 1), (5, 3, 8), (16, 4, 16), (17, None, 17), (3600, None, 3600)],
)
def test_an_endpoint_gets_the_time_that_it_asks_for(asked_seconds: float, topic: int | None, wait_seconds: int) -> None:
    """In the first topic that is long enough, or in Postgres."""
    expected = RetryAt(NOW + timedelta(seconds=wait_seconds), None if topic is None else RETRY_TOPICS[topic], 2)
    assert Attempted().end(1, 429, asked_seconds).end == expected


def test_an_endpoint_that_is_gone_is_told_before_the_delivery_ends() -> None:
    """Else the next one of its entity would be sent to it."""
    attempted = Attempted()
    assert attempted.end(1, 410).end == EndpointGone()
    assert attempted.told[0] == DELIVERY.endpoint_id
    assert len(attempted.told) == 2


def test_no_other_answer_is_one_of_an_endpoint_that_is_gone() -> None:
    """Neither a failure nor a success."""
    attempted = Attempted()
    for status_code in (200, 404, 429, 500):
        attempted.end(1, status_code)
    assert all(isinstance(told, EndedDelivery) for told in attempted.told)


@pytest.mark.parametrize(
    ("ordered", "after_dead_letter", "attempt", "blocks"),
    [
        (True, "block", 6, True),
        (True, "block", 5, False),
        (True, "proceed", 6, False),
        (False, "block", 6, False),
    ],
)
def test_a_dead_letter_blocks_where_the_endpoint_says_so(
    ordered: bool, after_dead_letter: str, attempt: int, blocks: bool
) -> None:
    """Only while it gets an entity's events in order, and not before it is dead."""
    attempted = Attempted(ordered=ordered, ordering="per_entity", after_dead_letter=after_dead_letter)
    ended = attempted.end(attempt)
    assert (ended.ordered, ended.blocks) == (ordered, blocks)


def test_what_ended_has_its_attempt_and_when_it_began() -> None:
    """They are written down."""
    ended = Attempted().end()
    assert (ended.began_at, ended.attempted, ended.recorded) == (NOW - timedelta(seconds=3), True, False)
    assert ended.attempt is not None
    assert ended.attempt.outcome.status_code == 500


def test_an_attempt_that_could_not_be_made_is_no_attempt() -> None:
    """The delivery waits in Postgres, with the number that it has."""
    attempted = Attempted()
    attempted.begin(3)
    attempted.service.put_off(ID, "KeyError")
    (ended,) = attempted.told
    assert isinstance(ended, EndedDelivery)
    assert ended.end == Postponed(NOW + timedelta(seconds=UNUSABLE_SECONDS - 3), "KeyError")
    assert (ended.attempt, ended.delivery.attempt) == (None, 3)


def test_an_attempt_ends_once() -> None:
    """One that has ended, or never began, schedules nothing."""
    attempted = Attempted()
    attempted.end()
    outcome = Attempt(outcome=AttemptOutcome(status_code=500), duration_seconds=0.0)
    with pytest.raises(KeyError):
        attempted.service.schedule_retry(ID, outcome)
    with pytest.raises(KeyError):
        attempted.service.put_off(b"another", "")
    assert len(attempted.told) == 1
