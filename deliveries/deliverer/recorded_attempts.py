"""Attempts that Kafka has a record of, and whose round was not written down: what came of them is known.

A round publishes the records of attempts before it is written to Postgres. A process that ends in between leaves
records behind the checkpoint: the next owner reads them first, and makes none of these attempts again.

That holds while the topic is the one that was written. An owner has no digest of what it published, but recorders have
one of what they read: by it a topic is known that lost its tail and has grown again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from audit.canonical import headers_bytes
from deliveries.deliverer.attempt_records import Cancelled, DeliveryEnd, Postponed
from deliveries.deliverer.delivery import Delivery
from deliveries.delivery_fence import TopicOffsets
from deliveries.schedule import DeadLettered, Delivered, RetryAt
from runtime.settings import Settings
from schemas import codec
from schemas.delivery_records import DeliveryAttempted, DeliveryStream
from schemas.errors import Undecodable
from streams.errors import KafkaUnavailable, LogTruncated
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer
from streams.log_end import LoggedRecord, RecordDigest
from streams.watermarks import Watermarks

POLL_TIMEOUT_MS: Final = 500
NEEDED_FOR: Final = timedelta(minutes=2)
"""How long records whose deliveries do not come stay behind the checkpoint: those of an owner that was frozen."""

OpenTopic = Callable[[Watermarks], Awaitable[TopicOffsets]]
"""Returns how far attempts are written down, from what the broker says of their topic."""


class AttemptOf(NamedTuple):
    """What an attempt is known by: a delivery has one for each of its hops."""

    delivery_id: bytes
    stream: DeliveryStream
    hop: int


class RecordedAttempts(msgspec.Struct):
    """The records behind the checkpoint, and the offset up to which they were read."""

    by_attempt: dict[AttemptOf, DeliveryAttempted]
    next_offset: int
    needed_until: datetime
    """Until then the records stay behind the checkpoint, unless each was met: another owner may need them."""

    def are_needed(self, now: datetime) -> bool:
        """Return whether some of the deliveries that they are of may be read again."""
        return bool(self.by_attempt) and now < self.needed_until

    def take(self, delivery: Delivery) -> DeliveryAttempted | None:
        """Return the record of a delivery's attempt, once; None where there is none."""
        return self.by_attempt.pop(AttemptOf(delivery.delivery_id, delivery.stream, delivery.hop), None)


async def read_recorded_attempts(
    settings: Settings, topic: str, partition: int, last: RecordDigest | None, open_topic: OpenTopic, now: datetime
) -> RecordedAttempts:
    """Read the records of a partition's attempts from the checkpoint to the end.

    `last` is a record that a recorder has read of it before this is called. Raises KafkaUnavailable, and LogTruncated
    where Kafka holds another one there, or none, or ends below the checkpoint.
    """
    consumer = make_consumer(
        settings, group_id=None, enable_auto_commit=False, auto_offset_reset="none", isolation_level="read_committed"
    )
    here = TopicPartition(topic, partition)
    found: dict[AttemptOf, DeliveryAttempted] = {}
    try:
        await consumer.start()
        consumer.assign([here])
        watermarks = await consumer.watermarks(here)
        offsets = await open_topic(watermarks)
        await _compare(consumer, here, watermarks, last)
        if offsets.next_offset > watermarks.high:
            raise LogTruncated(topic, partition, f"Kafka ends at {watermarks.high}, below {offsets.next_offset}")
        consumer.seek(here, max(watermarks.low, offsets.next_offset))
        while await consumer.position(here) < watermarks.high:
            for record in (await consumer.getmany(here, timeout_ms=POLL_TIMEOUT_MS)).get(here, ()):
                if (attempted := _decoded(record.value)) is not None:
                    found[AttemptOf(attempted.delivery_id.bytes, attempted.stream, attempted.hop)] = attempted
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()
    return RecordedAttempts(found, watermarks.high, now + NEEDED_FOR)


async def _compare(
    consumer: RepairedConsumer, here: TopicPartition, watermarks: Watermarks, last: RecordDigest | None
) -> None:
    """Raise LogTruncated where Kafka holds another record than the last one that was recorded, or none there."""
    if last is None or last.offset < watermarks.low:  # it was deleted since it is old
        return
    held: LoggedRecord | None = None
    if last.offset < watermarks.high:
        consumer.seek(here, last.offset)
        while held is None and await consumer.position(here) <= last.offset:
            for record in (await consumer.getmany(here, timeout_ms=POLL_TIMEOUT_MS, max_records=1)).get(here, ()):
                headers = headers_bytes(record.headers)
                held = LoggedRecord(record.offset, record.timestamp, record.key, record.value, headers)
    if held is None or held.offset != last.offset:
        raise LogTruncated(here.topic, here.partition, f"Kafka holds no record at offset {last.offset} any more")
    if not last.is_record(held):
        why = f"Kafka holds a record at offset {last.offset} that is not the one that was recorded"
        raise LogTruncated(here.topic, here.partition, why)


def end_of(recorded: DeliveryAttempted) -> DeliveryEnd:
    """Return what came of a delivery whose attempt is recorded; what has to wait does so in Postgres from then on."""
    if recorded.outcome == "postponed":
        return Postponed(recorded.next_attempt_at, recorded.why)
    match recorded.state:
        case "delivered":
            return Delivered()
        case "dead":
            return DeadLettered(recorded.attempt)
        case "cancelled":
            return Cancelled(recorded.why)
        case "waiting":
            return RetryAt(recorded.next_attempt_at or recorded.attempted_at, None, recorded.attempt + 1)


def _decoded(value: bytes | None) -> DeliveryAttempted | None:
    try:
        record = codec.decode_record(value)
    except Undecodable:
        return None
    return record if isinstance(record, DeliveryAttempted) else None
