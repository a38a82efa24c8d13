"""What follows from the end of an attempt, or from a wait: the records on Kafka, and the row of those that wait."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple, TypeAlias, assert_never
from uuid import UUID

import msgspec

from deliveries.attempts import Attempt
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.wait_rows import WaitRow
from deliveries.outcomes import classify
from deliveries.schedule import DeadLettered, Decision, Delivered, EndpointGone, RetryAt
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, EXCERPT_MAX_BYTES, AttemptResult, DeliveryAttempted, DeliveryState
from streams.topics import (
    DEAD_DELIVERIES_TOPIC,
    RECORD_MAX_BYTES,
)

WHY_MAX_CHARACTERS: Final = 1_000
ROW_MARGIN_BYTES: Final = 4_096
"""A record that leaves less room than this to the broker's bound waits in Postgres, whatever its delay."""


class Postponed(msgspec.Struct, frozen=True):
    """Nothing was sent, and the delivery waits in Postgres: until a time, or behind others of its entity."""

    until: datetime | None
    why: str


class Cancelled(msgspec.Struct, frozen=True):
    """Nothing was sent, and nothing will be: the endpoint takes no deliveries."""

    why: str


DeliveryEnd: TypeAlias = Decision | Postponed | Cancelled


class EndedDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a delivery that was due."""

    delivery: Delivery
    end: DeliveryEnd
    began_at: datetime
    attempt: Attempt | None = None
    recorded: bool = False
    """Whether the attempt has its record already: it was read, and is not published again."""
    attempted: bool = False
    """Whether an attempt was begun, whatever came of it."""
    ordered: bool = False
    """Whether later deliveries of its entity wait for it."""
    blocks: bool = False
    """Whether they wait on where it is a dead letter."""


class OutgoingRecord(NamedTuple):
    """A record to publish, by the logical name of its topic."""

    topic: str
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def records_of(ended: EndedDelivery, token: int) -> list[OutgoingRecord]:
    """Return the record of the attempt, and the one that the delivery waits or is dead in."""
    delivery, key = ended.delivery, ended.delivery.key
    records = []
    if not ended.recorded:
        records.append(OutgoingRecord(ATTEMPTS_TOPIC, key, codec.encode_checked(attempt_record(ended, token)), []))
    match ended.end:
        case RetryAt(at=at, topic=topic, attempt=attempt) if waits_in_topic(ended):
            assert topic is not None
            records.append(OutgoingRecord(topic, key, delivery.next_value(attempt, at, token), []))
        case DeadLettered():
            value, left_out = delivery.value, []
            if len(value) > RECORD_MAX_BYTES - ROW_MARGIN_BYTES:
                left_out = [("plant.left-out", b"the value: %d bytes" % len(value))]
            headers = [*dead_headers(ended), *left_out]
            records.append(OutgoingRecord(DEAD_DELIVERIES_TOPIC, key, None if left_out else value, headers))
        case _:
            pass
    return records


def waits_in_topic(ended: EndedDelivery) -> bool:
    """Return whether a delivery waits in a retry topic."""
    return (
        isinstance(ended.end, RetryAt)
        and ended.end.topic is not None
        and len(ended.delivery.value) <= RECORD_MAX_BYTES - ROW_MARGIN_BYTES
    )


def row_due_at(ended: EndedDelivery) -> datetime | None:
    """Return when a delivery is due whose record is in a row; None where it is in none, or waits behind another."""
    match ended.end:
        case RetryAt(at=at) if not waits_in_topic(ended):
            return at
        case Postponed(until=until):
            return until
        case _:
            return None


def wait_row_of(ended: EndedDelivery, token: int) -> WaitRow | None:
    """Return the row of a delivery that waits, or that others wait for; None where there is none."""
    delivery = ended.delivery
    match ended.end:
        case RetryAt(at=at, attempt=attempt):
            due_at: datetime | None = at
            record = None if waits_in_topic(ended) else delivery.next_value(attempt, at, token)
        case Postponed(until=until):
            due_at = until
            record = delivery.next_value(delivery.attempt, until or ended.began_at, token)
        case DeadLettered() if ended.blocks:
            due_at = record = None
        case _:
            return None
    return WaitRow(
        delivery_id=delivery.delivery_id,
        endpoint_id=delivery.endpoint_id,
        hop=delivery.hop + 1,
        due_at=due_at,
        record=record,
        entity_id=delivery.entity_id if ended.ordered else None,
        source_partition=delivery.source_partition,
        source_offset=delivery.source_offset,
        source_rank=delivery.source_rank,
    )


def attempt_record(ended: EndedDelivery, token: int) -> DeliveryAttempted:
    """Return the record of what came of a delivery that was due."""
    delivery, attempt = ended.delivery, ended.attempt
    outcome, state, next_at = outcome_of(ended)
    return DeliveryAttempted(
        event_id=UUID(bytes=delivery.event_id),
        delivery_id=UUID(bytes=delivery.delivery_id),
        endpoint_id=UUID(bytes=delivery.endpoint_id),
        type=delivery.type,
        occurred_at=delivery.occurred_at,
        entity_id=UUID(bytes=delivery.entity_id),
        stream=delivery.stream,
        source_partition=delivery.source_partition,
        source_offset=delivery.source_offset,
        source_rank=delivery.source_rank,
        attempt=delivery.attempt,
        hop=delivery.hop,
        attempted_at=ended.began_at,
        duration_us=0 if attempt is None else int(attempt.duration_seconds * 1_000_000),
        outcome=outcome,
        state=state,
        status_code=None if attempt is None else attempt.outcome.status_code,
        error_class=None if attempt is None else attempt.outcome.error_class,
        why=why_of(ended),
        next_attempt_at=next_at,
        request=b"" if attempt is None else attempt.body[:EXCERPT_MAX_BYTES],
        answer=b"" if attempt is None else attempt.answer[:EXCERPT_MAX_BYTES],
        token=token,
    )


def outcome_of(ended: EndedDelivery) -> tuple[AttemptResult, DeliveryState, datetime | None]:
    """Return what came of an attempt, the delivery's state from then on, and when the next attempt is due."""
    outcome: AttemptResult = "failed" if ended.attempt is None else classify(ended.attempt.outcome)
    match ended.end:
        case Delivered():
            return outcome, "delivered", None
        case RetryAt(at=at):
            return outcome, "waiting", at
        case DeadLettered():
            return outcome, "dead", None
        case EndpointGone():
            return "gone", "cancelled", None
        case Postponed(until=until):
            return "postponed", "waiting", until
        case Cancelled():
            return "cancelled", "cancelled", None
        case _:
            assert_never(ended.end)


def dead_headers(ended: EndedDelivery) -> list[tuple[str, bytes | None]]:
    """Return the headers of a dead letter, as Kafka Connect names its own: where its record was, and why it is dead.

    What is not known is left out. Of a delivery that was read from its row nobody knows by then on which topic its
    record was, nor where: topic, partition, offset and task are left out. There is no stack trace: nothing was raised.

    Source: org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter
    """
    delivery = ended.delivery
    partition = "" if delivery.offset < 0 else str(delivery.partition)
    texts = {
        "topic": delivery.topic,
        "partition": partition,
        "offset": "" if delivery.offset < 0 else str(delivery.offset),
        "connector.name": "plant",
        "task.id": partition,
        "stage": "TASK_PUT",
        "class.name": "deliveries.deliverer",
        "exception.class.name": _error_name(ended.attempt),
        "exception.message": why_of(ended),
    }
    return [(f"__connect.errors.{name}", text.encode()) for name, text in texts.items() if text]


def _error_name(attempt: Attempt | None) -> str:
    """Return why no whole answer came, or the status of the one that did; nothing where there was no attempt."""
    if attempt is None:
        return ""
    return attempt.outcome.error_class or f"status {attempt.outcome.status_code}"


def why_of(ended: EndedDelivery) -> str:
    """Return why, in words: of a failed attempt, or of one that was not made; empty where it was accepted."""
    match ended.end:
        case Postponed(why=why) | Cancelled(why=why):
            return why[:WHY_MAX_CHARACTERS]
        case _:
            pass
    if ended.attempt is None:
        return ""
    status_code = ended.attempt.outcome.status_code
    text = ended.attempt.why or ("" if status_code is None else f"The answer was {status_code}.")
    return text.replace("\x00", "")[:WHY_MAX_CHARACTERS]
