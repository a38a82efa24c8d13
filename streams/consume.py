"""Typed consuming of events: `async for received in consume(settings, ...)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec
from aiokafka import ConsumerRecord
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import TopicPartition

from runtime.logging import get_logger
from runtime.settings import Settings
from schemas import codec
from schemas.control import ControlRecord
from schemas.errors import Undecodable, UnknownSchema
from schemas.events import Event
from schemas.external_registry import activate_registry
from streams.errors import CheckpointOutOfLog, KafkaUnavailable, SchemaNewer, TopicMissing, UnknownStart
from streams.kafka.clients import make_consumer
from streams.kafka.consumer import RepairedConsumer
from streams.partitioning import partition_of
from streams.record_position import RecordPosition
from streams.start import Start, check_order, offsets_at
from streams.topics import EVENTS_TOPIC, logical_topic

log = get_logger(__name__)

POLL_TIMEOUT_MS: Final = 250
RECORDS_PER_POLL: Final = 2_000

OnUndecodable = Callable[[RecordPosition, str], None]
OnControl = Callable[["ReceivedControl"], None]


class Received(msgspec.Struct, frozen=True):
    """An event as it was read. `timestamp` is the broker's, from when the record was appended."""

    event: Event
    position: RecordPosition
    timestamp: datetime
    headers: tuple[tuple[str, bytes | None], ...]
    """In the record's order. A name that is not UTF-8 is in `surrogateescape` form."""


class ReceivedControl(msgspec.Struct, frozen=True):
    """A control record as it was read, with its key; otherwise as :class:`Received`."""

    control: ControlRecord
    key: bytes | None
    position: RecordPosition
    timestamp: datetime
    headers: tuple[tuple[str, bytes | None], ...]


async def consume(
    settings: Settings,
    *,
    types: Collection[str] | None = None,
    start: Start = "earliest",
    end: Start | None = None,
    entity_id: UUID | None = None,
    follow: bool = False,
    topic: str = EVENTS_TOPIC,
    partitions: Collection[int] | None = None,
    group: str | None = None,
    on_undecodable: OnUndecodable | None = None,
    on_control: OnControl | None = None,
) -> AsyncGenerator[Received]:
    """Yield events in each partition's order; partitions are mixed as they arrive. Close it (`aclosing`) to stop early.

    Without `follow` it ends where the topic ended when it began, or before `end`. With an `entity_id` only the records
    that have it as their key are read, from its partition alone unless `partitions` names others. Undecodable records
    are skipped and logged, or handed to `on_undecodable`. Control records are about the log: they are skipped, or
    handed to `on_control`. Repeats are yielded too: they have the same event id. A group stops at a schema of a later
    release of Plant, which it would skip permanently.

    Without a `group` every partition (or `partitions`) is read from `start`. With one, the group's members share the
    partitions and read on from the group's committed offsets (from `start`, earliest or latest, where it has none). An
    offset is committed after the events before it have been worked through: at least once.

    Raises KafkaUnavailable, TopicMissing, UnknownStart, SchemaNewer, and CheckpointOutOfLog where the log no longer
    holds an offset that is to be read: nothing ever starts again from another one.
    """
    _check(start, end, entity_id, follow=follow, group=group)
    await asyncio.to_thread(activate_registry, settings)
    consumer = _consumer(settings, group)
    key = None if entity_id is None else codec.json_text(entity_id)
    tell = on_undecodable or _log_undecodable
    try:
        await consumer.start()
        assigned = await _partitions(consumer, topic, partitions, key)
        await _position(consumer, topic, start, assigned, group)
        ends = None if follow else await offsets_at(consumer, assigned, "latest" if end is None else end)
        while True:
            polled = await _poll(consumer, start)
            for partition, records in polled.items():
                wanted = _with_key(_until(records, ends, partition), key)
                for received in _read(wanted, types, tell, on_control or _skip_control, skip_newer=group is None):
                    yield received
            if group is not None and polled:
                await _commit(consumer, {partition: records[-1].offset + 1 for partition, records in polled.items()})
            if ends is not None and await _reached(consumer, ends):
                return
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()


async def read_record(settings: Settings, position: RecordPosition) -> ConsumerRecord | None:
    """Return the record at a position as Kafka has it, committed or never in a transaction; None where there is none.

    Raises KafkaUnavailable, TopicMissing, UnknownStart.
    """
    consumer = _consumer(settings, None)
    try:
        await consumer.start()
        (partition,) = await _partitions(consumer, position.topic, [position.partition], None)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        if not (await consumer.beginning_offsets([partition]))[partition] <= position.offset < end:
            return None
        consumer.seek(partition, position.offset)
        while await consumer.position(partition) <= position.offset:
            for record in (await consumer.getmany(timeout_ms=POLL_TIMEOUT_MS, max_records=1)).get(partition, ()):
                return record if record.offset == position.offset else None
        return None
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()


def _check(start: Start, end: Start | None, entity_id: UUID | None, *, follow: bool, group: str | None) -> None:
    """Raise UnknownStart for what can't be read together."""
    if end is not None:
        check_order(start, end)
        if follow:
            raise UnknownStart("What is followed has no end.", why="Leave out one of the two.")
    if group is not None and (end is not None or entity_id is not None):
        raise UnknownStart("A group reads whole partitions.", why="It takes no end and no key.")
    if group is not None and start not in ("earliest", "latest"):
        raise UnknownStart(
            "A group starts at earliest or latest.",
            why="Its members go on where the group was; an offset or a time would move the others.",
            next_step="plant consume --from earliest",
        )


def _consumer(settings: Settings, group: str | None) -> RepairedConsumer:
    return make_consumer(
        settings,
        group_id=group,
        enable_auto_commit=False,
        # Kafka's own setting for a group without a committed offset would also move one whose offset left the log.
        auto_offset_reset="none",
        isolation_level="read_committed",
        max_partition_fetch_bytes=2 * 1024 * 1024,
        metadata_max_age_ms=30_000,
    )


async def _position(
    consumer: RepairedConsumer, topic: str, start: Start, assigned: list[TopicPartition], group: str | None
) -> None:
    if group is not None:
        consumer.subscribe([topic])
        return
    consumer.assign(assigned)
    for partition, offset in (await offsets_at(consumer, assigned, start)).items():
        consumer.seek(partition, offset)


async def _partitions(
    consumer: RepairedConsumer, topic: str, partitions: Collection[int] | None, key: bytes | None
) -> list[TopicPartition]:
    if topic not in await consumer.topics():
        raise TopicMissing(f"The topic {topic} does not exist.", next_step="plant topics apply")
    known = await consumer.partition_numbers(topic)
    unknown = sorted(set(partitions or ()) - set(known))
    if unknown:
        raise UnknownStart(f"{topic} has no partition {unknown[0]}.", why=f"It has partitions 0 to {known[-1]}.")
    if partitions is None and key is not None:
        partitions = [partition_of(key, len(known))]
    return [TopicPartition(topic, partition) for partition in known if partitions is None or partition in partitions]


async def _poll(consumer: RepairedConsumer, start: Start) -> dict[TopicPartition, list[ConsumerRecord]]:
    """Return the next records; none where a group has just got its first position in a partition."""
    try:
        polled: dict[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
            timeout_ms=POLL_TIMEOUT_MS, max_records=RECORDS_PER_POLL
        )
    except NoOffsetForPartitionError as error:
        (partition,) = error.args
        with suppress(IllegalStateError):  # the group has moved it just now
            consumer.seek(partition, (await offsets_at(consumer, [partition], start))[partition])
        return {}
    except OffsetOutOfRangeError as error:
        ((partition, offset), *_) = error.args[0].items()
        raise CheckpointOutOfLog(partition.topic, partition.partition, offset) from error
    return polled


def _until(
    records: Iterable[ConsumerRecord], ends: dict[TopicPartition, int] | None, partition: TopicPartition
) -> Iterable[ConsumerRecord]:
    return records if ends is None else [record for record in records if record.offset < ends[partition]]


def _with_key(records: Iterable[ConsumerRecord], key: bytes | None) -> Iterable[ConsumerRecord]:
    return records if key is None else [record for record in records if record.key == key]


async def _reached(consumer: RepairedConsumer, ends: dict[TopicPartition, int]) -> bool:
    """Return whether every assigned partition has been read to its end; False while a group assigns none.

    A partition that has been is fetched no more.
    """
    assigned = consumer.assignment()
    unfinished = set(assigned)
    for partition in assigned:
        with suppress(IllegalStateError):  # the group has moved it just now
            state = consumer.fetch_state(partition)
            if state is not None and state.has_valid_position and await consumer.position(partition) >= ends[partition]:
                consumer.pause(partition)
                unfinished.remove(partition)
    return bool(assigned) and not unfinished


async def _commit(consumer: RepairedConsumer, offsets: dict[TopicPartition, int]) -> None:
    """Commit the group's offsets in partitions that are still assigned. Those that moved are read again elsewhere."""
    assigned = consumer.assignment()
    offsets = {partition: offset for partition, offset in offsets.items() if partition in assigned}
    if offsets:
        with suppress(CommitFailedError, IllegalStateError):
            await consumer.commit(offsets)


def _read(
    records: Iterable[ConsumerRecord],
    types: Collection[str] | None,
    tell: OnUndecodable,
    on_control: OnControl,
    *,
    skip_newer: bool,
) -> Iterable[Received]:
    for record in records:
        position, carried = RecordPosition(record.topic, record.partition, record.offset), logical_topic(record.topic)
        try:
            if types is not None and codec.registered(record.value, carried).event.event_type not in types:
                continue
            value = codec.decode_record(record.value, carried)
        except Undecodable as error:
            if isinstance(error, UnknownSchema) and not skip_newer:
                raise SchemaNewer(record.topic, record.partition, record.offset, error.schema_id) from error
            tell(position, error.reason)
            continue
        appended = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        if isinstance(value, ControlRecord):
            on_control(ReceivedControl(value, record.key, position, appended, tuple(record.headers)))
        elif isinstance(value, Event):
            yield Received(value, position, appended, tuple(record.headers))


def _skip_control(received: ReceivedControl) -> None:
    pass


def _log_undecodable(position: RecordPosition, reason: str) -> None:
    log.warning("record.undecodable", position=str(position), reason=reason)
