"""Events that an endpoint asks for and was not sent: found from the log, whatever is left on the topics of deliveries.

A delivery is missing where none of it is recorded as delivered, waiting or dead. To say so of an event, all that was
dispatched by then has to be recorded: the search waits until deliverers and recorders have passed what was on their
topics.

What dispatchers give an endpoint by themselves is not looked at: events from their checkpoint on, and those from before
they knew of it that they have still to read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from deliveries.delivery_id import delivery_id
from deliveries.endpoint_starts import read_start
from deliveries.endpoints import Endpoint
from deliveries.errors import DeliveriesBehind, UnknownDeliveries
from deliveries.matching import Subscription, make_subscription
from deliveries.redrive.redrive_plan import LeftOut, PlannedGroup, RedrivePlan
from deliveries.signed_request import outgoing_event
from projections.checkpoints import DISPATCHER, checkpoints_of
from projections.effective_events import EffectiveEvent, logged_events
from projections.session import Session
from runtime.settings import DatabaseRole, Settings
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC
from schemas.errors import Undecodable
from streams.errors import KafkaUnavailable
from streams.kafka.clients import make_consumer
from streams.partitioning import partition_of
from streams.topics import EVENTS_TOPIC, logical_topic

SLICE_EVENTS: Final = 500
BEHIND_TIMEOUT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.2
EXAMPLES: Final = 3
MARGIN: Final = timedelta(days=1)
"""Deliveries of a day may go while they are looked at."""

_BACKFILLS: Final = text("""
    SELECT b.partition, b.next_offset, b.until_offset, e.state = 'active' AND b.resumes < e.resumes AS resumed_since
    FROM endpoint_backfills AS b JOIN endpoints AS e ON e.id = b.endpoint_id WHERE b.endpoint_id = :endpoint_id
""")
_DONE: Final = text("""
    SELECT next_offset FROM delivery_checkpoints
    WHERE consumer = :consumer AND topic = :topic AND partition = :partition
""")
_STATES: Final = text("""
    SELECT asked.id, d.state, redrive_pending(asked.id, coalesce(d.hop, 0)) AS ordered
    FROM unnest(CAST(:ids AS uuid[])) AS asked (id) LEFT JOIN webhook_deliveries AS d ON d.id = asked.id
""")


class MissingDelivery(NamedTuple):
    """A delivery that is missing; `state` is `cancelled`, or None where nothing of it is recorded."""

    source_partition: int
    source_offset: int
    source_rank: int
    event_id: UUID
    delivery_id: UUID
    occurred_at: datetime
    type: str
    state: str | None
    ordered: bool
    """Whether an order that is not done has it."""


class DeliveryTopicNames(NamedTuple):
    """The topics that are compared."""

    events: str = EVENTS_TOPIC
    deliveries: str = DELIVERIES_TOPIC
    attempts: str = ATTEMPTS_TOPIC


DEFAULT_NAMES: Final = DeliveryTopicNames()

OffsetRange = tuple[int, int]


class MissingTally:
    """What is missing of an endpoint, counted as it is found."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._counts: Counter[tuple[str | None, str, LeftOut | None]] = Counter()
        self.examples: Final[list[UUID]] = []
        """Events that an order would send."""

    @property
    def count(self) -> int:
        """How many deliveries were counted."""
        return self._counts.total()

    def add(self, missing: MissingDelivery) -> LeftOut | None:
        """Count a delivery; return why it would not be sent, or None."""
        left_out: LeftOut | None = "ordered" if missing.ordered else None
        if self._endpoint.state != "active":
            left_out = "inactive"
        self._counts[missing.state, missing.type, left_out] += 1
        if left_out is None and len(self.examples) < EXAMPLES:
            self.examples.append(missing.event_id)
        return left_out

    def groups(self) -> list[PlannedGroup]:
        """Return the groups of what was counted, those that are left out among them."""
        return [
            PlannedGroup(
                endpoint_id=self._endpoint.id, endpoint_state=self._endpoint.state, state=state or "missing",
                type=event_type, left_out=left_out, deliveries=count,
            )
            for (state, event_type, left_out), count in sorted(self._counts.items(), key=str)
        ]  # fmt: skip

    def plan(self) -> RedrivePlan:
        """Return the plan of an order of what was counted. Its examples are events."""
        return RedrivePlan(self.groups(), self.examples)


class MissingSearch:
    """A search through the log for what one endpoint was not sent since a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        endpoint: Endpoint,
        names: DeliveryTopicNames = DEFAULT_NAMES,
        *,
        log_reader: DatabaseRole = "auditor",
        rest_share: float = 0.0,
    ) -> None:
        """`database` reads deliveries and orders, `log_reader` the log.

        It rests after each slice, for `rest_share` of the time that this took.
        """
        self.checked = 0
        """Events that were compared."""
        self.undispatched = 0
        """Offsets since then that are not looked at: dispatchers have still to pass them, and do so by themselves."""
        self._settings = settings
        self._database = database
        self._log_address = settings.database_address(log_reader)
        self._rest_share = rest_share
        self._endpoint = endpoint
        self._names = names
        self._ranges: dict[int, list[OffsetRange]] = {}
        configuration = endpoint.configuration
        self._subscription: Subscription = make_subscription(
            endpoint.id, configuration.event_types, configuration.filter, endpoint.start.offsets
        )

    async def prepare(self, since: datetime, now: datetime) -> None:
        """Fix the events that are looked at. Raises UnknownDeliveries, DeliveriesBehind, KafkaUnavailable."""
        kept = timedelta(days=self._settings.deliveries_keep_days) - MARGIN
        if since < now - kept:
            raise UnknownDeliveries(
                why=f"Deliveries are kept for {self._settings.deliveries_keep_days} days.",
                next_step=f"plant deliveries replay-missing {self._endpoint.id} --since {kept.days - 1}d",
            )
        first = (await read_start(self._settings, since, self._names.events)).offsets
        highs = (await read_start(self._settings, None, self._names.events)).offsets
        ends = await asyncio.to_thread(self._dispatched_to)
        rows = await self._heard_backfills()
        if unheard := set(range(len(first))) - {row.partition for row in rows}:
            raise DeliveriesBehind(
                why=f"No dispatcher has heard of the endpoint in partition {min(unheard)}: it gets all events from its"
                " start on by itself.",
                next_step="plant dispatcher",
            )
        for row in rows:
            if row.partition < len(first):
                start = max(first[row.partition], self._subscription.start_offset(row.partition))
                backfill = row.next_offset, row.until_offset
                ranges = list(offset_ranges(start, backfill, ends.get(row.partition, 0)))
                self._ranges[row.partition] = ranges
                self.undispatched += max(0, highs[row.partition] - start - offsets_of(ranges))
        await self._await_recorded()

    @property
    def offsets(self) -> int:
        """How many offsets of the log are looked at."""
        return sum(offsets_of(ranges) for ranges in self._ranges.values())

    async def missing(self) -> AsyncGenerator[MissingDelivery]:
        """Yield the missing deliveries, in the order of the log within each partition."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="missing-deliveries")
        # All of the session in one thread: a search that is given up closes it behind the query that runs.
        session = thread.submit(Session, self._log_address)
        try:
            reader = await asyncio.wrap_future(session)
            for partition, ranges in sorted(self._ranges.items()):
                for start, until in ranges:
                    at = start
                    while at < until:
                        began = time.monotonic()
                        found = await loop.run_in_executor(
                            thread, logged_events, reader, self._names.events, partition, (at, until), SLICE_EVENTS
                        )
                        at = found.next_offset
                        for each in await self._missing_of(partition, found.events):
                            yield each
                        await asyncio.sleep((time.monotonic() - began) * self._rest_share)
        finally:
            thread.submit(_close, session)
            thread.shutdown(wait=False)

    async def _missing_of(self, partition: int, events: Sequence[EffectiveEvent]) -> list[MissingDelivery]:
        self.checked += len(events)
        asked = await asyncio.to_thread(self._asked_for, partition, events)
        if not asked:
            return []
        async with self._database.transaction(read_only=True) as connection:
            return await still_missing(connection, asked)

    def _asked_for(self, partition: int, events: Sequence[EffectiveEvent]) -> list[MissingDelivery]:
        return [made for each in events if (made := self._delivery_of(partition, each)) is not None]

    def _delivery_of(self, partition: int, effective: EffectiveEvent) -> MissingDelivery | None:
        try:
            event = codec.decode(effective.value, logical_topic(self._names.events))
        except Undecodable as error:
            raise DeliveriesBehind(
                f"The event at {partition}/{effective.effective_offset} can't be read.", why=str(error)
            ) from error
        data = msgspec.json.decode(outgoing_event(event, source="").data)
        if not self._subscription.matches_event(event.event_type, data):
            return None
        made = UUID(bytes=delivery_id(event.event_id.bytes, self._endpoint.id.bytes))
        return MissingDelivery(
            partition, effective.effective_offset, effective.rank, event.event_id, made, event.occurred_at,
            event.event_type, None, ordered=False,
        )  # fmt: skip

    def _dispatched_to(self) -> dict[int, int]:
        session = Session(self._log_address)
        try:
            return checkpoints_of(session, DISPATCHER, self._names.events)
        finally:
            session.close()

    async def _heard_backfills(self) -> Sequence[Any]:
        """Return the rows of the endpoint's backfills, once dispatchers have heard of its last resume.

        Until then they may have passed events that they are still to give it.
        """
        deadline = time.monotonic() + BEHIND_TIMEOUT_SECONDS
        while True:
            async with self._database.transaction(read_only=True) as connection:
                rows = (await connection.execute(_BACKFILLS, {"endpoint_id": self._endpoint.id})).all()
            unheard = [row.partition for row in rows if row.resumed_since]
            if not unheard:
                return rows
            if time.monotonic() > deadline:
                raise DeliveriesBehind(
                    why=f"No dispatcher has heard in partition {min(unheard)} that the endpoint was resumed: it gets"
                    " what was published since by itself.",
                    next_step="plant dispatcher",
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _await_recorded(self) -> None:
        """Return once what is on the topics of the endpoint's partition now is done and recorded."""
        deadline = time.monotonic() + BEHIND_TIMEOUT_SECONDS
        key = str(self._endpoint.id).encode()
        for consumer, topic in (("deliverer", self._names.deliveries), ("recorder", self._names.attempts)):
            partition, end = await self._end_of(topic, key)
            while await self._done_to(consumer, topic, partition) < end:
                if time.monotonic() > deadline:
                    raise DeliveriesBehind(
                        why=f"A {consumer} has not passed offset {end} of {topic}/{partition}: what is missing can't be"
                        " told from what is on its way.",
                        next_step="plant deliverer",
                    )
                await asyncio.sleep(POLL_SECONDS)

    async def _done_to(self, consumer: str, topic: str, partition: int) -> int:
        values = {"consumer": consumer, "topic": topic, "partition": partition}
        async with self._database.transaction(read_only=True) as connection:
            return int((await connection.execute(_DONE, values)).scalar_one_or_none() or 0)

    async def _end_of(self, topic: str, key: bytes) -> tuple[int, int]:
        """Return the partition of a key, and its end."""
        consumer = make_consumer(
            self._settings, group_id=None, enable_auto_commit=False, isolation_level="read_committed"
        )
        try:
            await consumer.start()
            partition = partition_of(key, len(await consumer.partition_numbers(topic)))
            here = TopicPartition(topic, partition)
            consumer.assign([here])
            return partition, (await consumer.watermarks(here)).high
        except (KafkaError, TimeoutError) as error:
            raise KafkaUnavailable(
                why=f"{type(error).__name__} from {self._settings.kafka_bootstrap_servers}."
            ) from error
        finally:
            await consumer.stop()


async def still_missing(connection: AsyncConnection, asked: Sequence[MissingDelivery]) -> list[MissingDelivery]:
    """Return those of the deliveries that are missing as of now, with what is known of each."""
    rows = (await connection.execute(_STATES, {"ids": [each.delivery_id for each in asked]})).all()
    known: Mapping[UUID, Any] = {row.id: row for row in rows}
    return [
        each._replace(state=known[each.delivery_id].state, ordered=known[each.delivery_id].ordered)
        for each in asked
        if known[each.delivery_id].state in (None, "cancelled")
    ]


def _close(session: Future[Session]) -> None:
    """Close a session, if it could be opened."""
    if not session.cancelled() and session.exception() is None:
        session.result().close()


def offsets_of(ranges: Iterable[OffsetRange]) -> int:
    """Return how many offsets are in ranges that are apart.

    >>> offsets_of([(5, 10), (20, 30)])
    15
    """
    return sum(until - start for start, until in ranges)


def offset_ranges(first: int, backfill: OffsetRange, end: int) -> Iterator[OffsetRange]:
    """Yield the ranges of offsets from `first` on and below `end` that are not to be read for a backfill.

    >>> list(offset_ranges(5, (10, 20), 30)), list(offset_ranges(12, (10, 20), 15)), list(offset_ranges(5, (9, 9), 30))
    ([(5, 10), (20, 30)], [], [(5, 9), (9, 30)])
    """
    for start, until in ((first, min(backfill[0], end)), (max(first, backfill[1]), end)):
        if start < until:
            yield start, until
