"""What follows from the end of an attempt: the records on Kafka, and the row of what waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from deliveries.attempts import Attempt
from deliveries.deliverer.attempt_records import (
    ROW_MARGIN_BYTES,
    DeliveryEnd,
    EndedDelivery,
    Postponed,
    records_of,
    row_due_at,
    wait_row_of,
)
from deliveries.outcomes import AttemptOutcome
from deliveries.schedule import DeadLettered, Delivered, RetryAt
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryQueued
from streams.topics import DEAD_DELIVERIES_TOPIC, RECORD_MAX_BYTES, RETRY_TOPICS
from tests.support.made_deliveries import made_delivery

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=4)
RETRY = RetryAt(LATER, RETRY_TOPICS[2], 3)
LARGE = {"value": b"x" * (RECORD_MAX_BYTES - ROW_MARGIN_BYTES + 1)}
TOKEN = 7


def ended(end: DeliveryEnd, delivery: dict[str, Any] | None = None, **changes: Any) -> EndedDelivery:
    made = made_delivery(1, **{"attempt": 2, "hop": 5, "value": b"as it was", **(delivery or {})})
    return EndedDelivery(delivery=made, end=end, began_at=NOW, **changes)


def test_a_retry_is_in_its_topic_and_has_a_row_without_a_record() -> None:
    """Both of the next hop, by which a copy of the former one is known."""
    attempted, waiting = records_of(ended(RETRY), TOKEN)
    assert (attempted.topic, waiting.topic) == (ATTEMPTS_TOPIC, RETRY_TOPICS[2])
    queued = codec.decode_record(waiting.value)
    assert isinstance(queued, DeliveryQueued)
    assert (queued.hop, queued.attempt, queued.due_at, queued.token) == (6, 3, LATER, TOKEN)
    row = wait_row_of(ended(RETRY), TOKEN)
    assert row is not None
    assert (row.hop, row.due_at, row.record, row.entity_id) == (6, LATER, None, None)
    assert row_due_at(ended(RETRY)) is None


@pytest.mark.parametrize("end", [RetryAt(LATER, None, 3), RETRY])
def test_a_retry_that_no_topic_takes_is_in_its_row(end: RetryAt) -> None:
    """One of the long schedule, and one whose next record might be larger than the broker takes."""
    waiting = ended(end, LARGE if end.topic else None)
    assert [each.topic for each in records_of(waiting, TOKEN)] == [ATTEMPTS_TOPIC]
    row = wait_row_of(waiting, TOKEN)
    assert row is not None
    assert row.record is not None
    assert (row.hop, row_due_at(waiting)) == (6, LATER)


def test_a_wait_is_no_attempt() -> None:
    """The same attempt is still to be made; behind another delivery it has no time."""
    for until in (LATER, None):
        row = wait_row_of(ended(Postponed(until, "")), TOKEN)
        assert row is not None
        queued = codec.decode_record(row.record)
        assert isinstance(queued, DeliveryQueued)
        assert (row.due_at, queued.attempt, queued.hop) == (until, 2, 6)


def test_what_later_events_wait_for_names_its_entity() -> None:
    """Only where the endpoint asks for an order."""
    row = wait_row_of(ended(RETRY, ordered=True), TOKEN)
    assert row is not None
    assert row.entity_id == made_delivery(1).entity_id


def test_a_dead_letter_that_blocks_keeps_a_row_without_record_and_time() -> None:
    """One that does not has none, and neither has what is delivered."""
    row = wait_row_of(ended(DeadLettered(6), ordered=True, blocks=True), TOKEN)
    assert row is not None
    assert (row.record, row.due_at, row.hop, row.entity_id) == (None, None, 6, made_delivery(1).entity_id)
    assert wait_row_of(ended(DeadLettered(6), ordered=True), TOKEN) is None
    assert wait_row_of(ended(Delivered()), TOKEN) is None


def test_a_dead_letter_is_its_record_as_it_was() -> None:
    """One that leaves its headers too little room is named without its value."""
    dead = records_of(ended(DeadLettered(6)), TOKEN)[1]
    assert (dead.topic, dead.value) == (DEAD_DELIVERIES_TOPIC, b"as it was")
    assert "plant.left-out" not in dict(dead.headers)
    large = records_of(ended(DeadLettered(6), LARGE), TOKEN)[1]
    assert large.value is None
    assert dict(large.headers)["plant.left-out"] == b"the value: %d bytes" % len(LARGE["value"])


READ_FROM = {"topic": RETRY_TOPICS[4], "partition": 3, "offset": 17}
WHERE_IT_WAS = [("topic", RETRY_TOPICS[4]), ("partition", "3"), ("offset", "17"), ("connector.name", "plant")]
WHO_SENT_IT = [("stage", "TASK_PUT"), ("class.name", "deliveries.deliverer")]


@pytest.mark.parametrize(
    ("outcome", "why", "error"),
    [
        (AttemptOutcome(status_code=500), "", ("status 500", "The answer was 500.")),
        (AttemptOutcome(error_class="timeout"), "No whole answer\x00 came.", ("timeout", "No whole answer came.")),
        (AttemptOutcome(status_code=200, error_class="protocol"), "It broke off.", ("protocol", "It broke off.")),
    ],
    ids=["an answer", "no answer", "half an answer"],
)
def test_a_dead_letter_has_the_headers_of_kafka_connect(
    outcome: AttemptOutcome, why: str, error: tuple[str, str]
) -> None:
    """Where its record was, and what came of its last attempt: its status, or why no whole answer came."""
    attempt = Attempt(outcome=outcome, duration_seconds=0.5, why=why)
    assert dead_headers_of(READ_FROM, attempt=attempt) == [
        *WHERE_IT_WAS, ("task.id", "3"), *WHO_SENT_IT, ("exception.class.name", error[0]),
        ("exception.message", error[1]),
    ]  # fmt: skip


def test_a_dead_letter_says_nothing_of_what_is_not_known() -> None:
    """Where it was read from a row, or its attempt was recorded by the owner before."""
    attempt = Attempt(outcome=AttemptOutcome(status_code=500), duration_seconds=0.5)
    assert dead_headers_of({}, attempt=attempt) == [
        ("connector.name", "plant"), *WHO_SENT_IT, ("exception.class.name", "status 500"),
        ("exception.message", "The answer was 500."),
    ]  # fmt: skip
    assert dead_headers_of(READ_FROM, recorded=True) == [*WHERE_IT_WAS, ("task.id", "3"), *WHO_SENT_IT]


def dead_headers_of(read_from: dict[str, Any], **changes: Any) -> list[tuple[str, str]]:
    """Return the headers of a delivery that is dead, by their names in Kafka Connect."""
    delivery = msgspec.structs.replace(made_delivery(1), **read_from)
    dead = records_of(msgspec.structs.replace(ended(DeadLettered(6), **changes), delivery=delivery), TOKEN)[-1]
    assert all(name.startswith("__connect.errors.") for name, _ in dead.headers)
    return [(name.removeprefix("__connect.errors."), (value or b"").decode()) for name, value in dead.headers]


def test_a_recorded_attempt_is_not_recorded_again() -> None:
    """What follows from it is published all the same."""
    assert [each.topic for each in records_of(ended(RETRY, recorded=True), TOKEN)] == [RETRY_TOPICS[2]]
