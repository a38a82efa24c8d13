"""What `plant replay` does: find the offsets that are asked for, read the log, and write a topic or lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime
from typing import Final

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from operations.operator_actions import OperatorAction, record
from projections.checkpoints import PROJECTOR, checkpoints_of, partition_count
from projections.replayed_events import ReplayedEvent, ReplayedPage, ReplayFilter, replayed_pages
from projections.session import Session
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas import codec
from schemas.external_registry import activate_registry
from streams.errors import KafkaUnavailable, UnknownStart
from streams.kafka.clients import make_consumer
from streams.ordered_records import OrderedRecord, publish_in_order
from streams.partitioning import partition_of
from streams.producer import EventProducer
from streams.start import LastOffsets, Start, check_order, offsets_at
from streams.topics import CATALOGUE

HEAD_FIELDS: Final = ("event_id", "occurred_at")
"""The fields of an event that are beside its data in a line."""

Ranges = Mapping[int, tuple[int, int]]
"""The first offset and the one behind the last, by partition."""


class ReplayRefused(ConfigurationError):
    """Events can't be replayed there."""


def refuse_catalogue(topic: str) -> None:
    """Raise ReplayRefused for a topic of the catalogue: its readers would take the events for new ones."""
    if topic in {each.name for each in CATALOGUE}:
        raise ReplayRefused(
            f"{topic} is a topic of the catalogue.",
            why="Its readers would take what is replayed for new events. Make a topic of its own.",
            next_step="plant replay --into TOPIC",
        )


async def ranges_of(
    settings: Settings, topic: str, start: Start, end: Start, entity_id: object = None
) -> Ranges:  # fmt: skip
    """Return what lies between two places, within the log; of an entity in its partition alone.

    Kafka is asked for times. Raises UnknownStart where the order is wrong, or the topic begins after such a time.
    """
    check_order(start, end)
    with contextlib.closing(Session(settings.database_address("auditor"))) as session:
        log_ends, count = checkpoints_of(session, PROJECTOR, topic), partition_count(session, PROJECTOR, topic)
    if not log_ends:
        raise UnknownStart(f"The log has nothing of {topic}.", next_step="plant topics list")
    if entity_id is not None:
        partition = partition_of(str(entity_id).encode(), count)
        log_ends = {partition: log_ends.get(partition, 0)}
    first, last = [await _offsets(settings, topic, log_ends, each) for each in (start, end)]
    return {partition: (first[partition], max(first[partition], last[partition])) for partition in sorted(log_ends)}


async def _offsets(settings: Settings, topic: str, log_ends: Mapping[int, int], at: Start) -> dict[int, int]:
    match at:
        case "earliest":
            return dict.fromkeys(log_ends, 0)
        case "latest":
            return dict(log_ends)
        case LastOffsets():
            return {partition: max(0, log_end - at.count) for partition, log_end in log_ends.items()}
        case datetime():
            found = await _at_time(settings, topic, log_ends, at)
            return {partition: min(found[partition], log_end) for partition, log_end in log_ends.items()}
    return {partition: min(at, log_end) for partition, log_end in log_ends.items()}


async def _at_time(settings: Settings, topic: str, partitions: Mapping[int, int], at: datetime) -> dict[int, int]:
    consumer = make_consumer(settings, group_id=None, enable_auto_commit=False, auto_offset_reset="none")
    tps = [TopicPartition(topic, partition) for partition in partitions]
    try:
        await consumer.start()
        low = await consumer.beginning_offsets(tps)
        found = await offsets_at(consumer, tps, at)
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} from {settings.kafka_bootstrap_servers}.") from error
    finally:
        await consumer.stop()
    for tp, offset in found.items():
        if 0 < low[tp] == offset:
            raise UnknownStart(
                f"{topic}/{tp.partition} begins after that time.",
                why=f"Kafka knows times from offset {low[tp]} on; the log has earlier records.",
                next_step="plant replay --from earliest",
            )
    return {tp.partition: offset for tp, offset in found.items()}


def read_pages(settings: Settings, topic: str, ranges: Ranges, wanted: ReplayFilter) -> Generator[ReplayedPage]:
    """Yield what is asked for, partition by partition, as plant_auditor."""
    activate_registry(settings)
    with contextlib.closing(Session(settings.database_address("auditor"))) as session:
        for partition, offsets in ranges.items():
            yield from replayed_pages(session, topic, partition, offsets, wanted)


def line_of(replayed: ReplayedEvent) -> bytes:
    """Return an event as a line that `plant publish` takes, whose id is the event's."""
    event = replayed.event.without_nil()
    data = {name: value for name, value in msgspec.to_builtins(event).items() if name not in HEAD_FIELDS}
    head = {"type": event.event_type, "id": str(event.event_id), "timestamp": event.occurred_at}
    return msgspec.json.encode({**head, "data": data}) + b"\n"


async def replay_into(
    settings: Settings, into: str, pages: Iterator[ReplayedPage], action: OperatorAction,
    count: Callable[[int], None],
) -> None:  # fmt: skip
    """Write events to a topic in their order, each page acknowledged before the next one; count them as they are.

    Raises what publishing raises: events that were counted are on the topic, and some of the page after them may be.
    """
    async with EventProducer(settings, topics=(into,)) as producer:
        await record(settings, action)
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            records = [OrderedRecord(codec.key(each.event), each.value, each.record_headers()) for each in page.events]
            await publish_in_order(producer, into, records)
            count(len(page.events))
