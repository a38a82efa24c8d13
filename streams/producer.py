"""The producer of events: idempotent, acknowledged by all in-sync replicas, many publishes to a Kafka batch.

While a partition's batch is on its way, the accumulator collects events for the next one. So batches grow with the load
by themselves, an event waits for nothing when there is no load, and a partition's events keep the order of publishing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import Settings
from schemas import codec
from schemas.clock_fields import ClockStamped
from schemas.events import Event
from schemas.external_registry import activate_registry
from schemas.sender_headers import EventOfSender
from streams.connected_producer import ConnectedProducer
from streams.deadlines import Deadlines
from streams.errors import (
    KafkaUnavailable,
    OutcomeUnknown,
    Overloaded,
    PartitionCountChanged,
    PartitionUnknown,
    RecordTooLarge,
    StreamsError,
)
from streams.kafka.clients import check_clients
from streams.pending_publish import PendingPublish
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC, OPERATIONS_TOPIC, RECORD_MAX_BYTES

RECORD_OVERHEAD_BYTES: Final = 64
HEADER_OVERHEAD_BYTES: Final = 10
HEADER_NAME_BYTES: Final = 4
"""The most bytes that a character of a name takes. A record is never larger than it is counted."""

log = get_logger(__name__)

AnyEvent = Event | ClockStamped | EventOfSender
Events = Iterable[AnyEvent] | AsyncIterable[AnyEvent]

SenderHeaders = Sequence[tuple[str, bytes]]
"""Of one event, as `schemas.sender_headers` makes them."""

TURN_EVERY_RECORDS: Final = 256
ROOM_POLL_SECONDS: Final = 0.005


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the records that wait for Kafka, and on the time that they wait."""

    in_flight_records: int = 20_000
    in_flight_bytes: int = 64 * 1024 * 1024
    publish_timeout_seconds: float = 5.0
    """How long one publish waits for Kafka's acknowledgement."""
    reconnect_backoff_seconds: float = 0.5


class EventProducer:
    """Publishes events to their topics. One an event loop; safe for any number of concurrent publishes.

    Use it as an async context manager, or call `start` and `stop`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        topics: Iterable[str] = (EVENTS_TOPIC, OPERATIONS_TOPIC),
        events_topic: str = EVENTS_TOPIC,
        limits: Limits | None = None,
    ) -> None:
        """`topics` must exist and are connected to; `events_topic` is the topic for events of `genesis.events`, which
        has another name in a later generation. Raises RepairMisfit, and ConfigurationError where Kafka's settings
        can't be used.
        """
        self._settings = settings
        self._topic_of = {topic: events_topic if topic == EVENTS_TOPIC else topic for topic in topics}
        self._limits = limits or Limits()
        self._partition_counts: dict[str, int] = {}
        self._connected: ConnectedProducer | None = None
        self._fatal_error: PartitionCountChanged | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closings: set[asyncio.Task[None]] = set()
        self._records_in_flight = 0
        self._bytes_in_flight = 0
        check_clients(settings)
        self._deadlines: Deadlines[RecordPosition] = Deadlines(self._limits.publish_timeout_seconds, self._timed_out)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect. Raises KafkaUnavailable where no broker answers, TopicMissing where a topic does not exist."""
        await asyncio.to_thread(activate_registry, self._settings)
        self._use(await ConnectedProducer.connect(self._settings, self._topic_of.values()))
        self.start_in_background()

    def start_in_background(self) -> None:
        """Connect as soon as Kafka answers, and again after a fatal error; publishes fail meanwhile."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_connected(), name="producer-connection")

    async def stop(self) -> None:
        """Wait for what is on its way, up to the publish timeout, then disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        connected, self._connected = self._connected, None
        if connected is not None:
            await connected.close(self._limits.publish_timeout_seconds)
        await asyncio.gather(*self._closings, return_exceptions=True)

    @property
    def connected(self) -> bool:
        """Whether a publish would be sent now."""
        try:
            self.check_connected()
        except StreamsError:
            return False
        return True

    def check_connected(self) -> None:
        """Raise KafkaUnavailable, or PartitionCountChanged, unless a publish would be sent now."""
        self._usable()

    async def ping(self) -> None:
        """Ask a broker for its metadata; raise KafkaUnavailable unless it answers and publishing can go on."""
        await self._usable().ping()

    def submit(
        self,
        event: Event | ClockStamped,
        *,
        source: str,
        traceparent: str | None = None,
        value: bytes | None = None,
        sender: SenderHeaders = (),
    ) -> PendingPublish:
        """Publish without waiting. It is done when Kafka has acknowledged or refused the event, however late.

        `source` becomes `ce_source`; `value` is the event's encoding, where the caller has it already; `sender` are the
        headers that say who sent it. Raises Overloaded, RecordTooLarge or KafkaUnavailable when nothing was sent, and
        Unencodable where the event breaks a limit of its type.
        """
        if clock_stamped := isinstance(event, ClockStamped):
            event = event.event
        if value is None:
            value = codec.encode(event)
        headers = codec.headers(event, source, traceparent, clock_stamped=clock_stamped, sender=sender)
        return self.submit_record(event.topic, codec.key(event), value, headers)

    def submit_record(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        partition: int | None = None,
    ) -> PendingPublish:
        """Publish a record as it is, to one of the producer's topics, without waiting.

        It goes to the partition that is named, whatever its key; else its key decides, and one without a key goes to
        partition 0.

        Raises Overloaded, RecordTooLarge, PartitionUnknown or KafkaUnavailable when nothing was sent.
        """
        connected = self._usable()
        if partition is not None and not 0 <= partition < connected.partition_counts[self._topic_of[topic]]:
            raise PartitionUnknown(why=f"There is no {self._topic_of[topic]}/{partition}.")
        size_bytes = record_size_bytes(key, value, headers)
        if size_bytes > RECORD_MAX_BYTES:
            raise RecordTooLarge(why=f"It has {size_bytes} bytes; at most {RECORD_MAX_BYTES} are taken.")
        self._reserve(size_bytes)
        return connected.add(self._topic_of[topic], key, value, headers, size_bytes, partition)

    async def publish(
        self,
        event: Event | ClockStamped,
        *,
        source: str,
        traceparent: str | None = None,
        sender: SenderHeaders = (),
    ) -> RecordPosition:
        """Publish and wait for Kafka's acknowledgement; return the event's position.

        Raises what `submit` raises; OutcomeUnknown when Kafka has not answered in time: the event may have been
        written, so publish it again with the same event id; PublishRefused when it was certainly not written.
        """
        return await self.await_acknowledgement(
            self.submit(event, source=source, traceparent=traceparent, sender=sender)
        )

    async def await_acknowledgement(self, publish: PendingPublish) -> RecordPosition:
        """Return a submitted event's position once Kafka has acknowledged it.

        Raises OutcomeUnknown after the publish timeout, and what `publish` raises where Kafka refused it.
        """
        await self._deadlines.wait(publish.answer)
        return publish.position()

    async def await_each(self, publishes: Collection[PendingPublish]) -> list[RecordPosition | StreamsError]:
        """Wait for all of them, up to the publish timeout; return each one's position or error, in order."""
        waiting = {publish.answer for publish in publishes if not publish.done()}
        if waiting:
            # Neither giving up nor cancellation touches the answers, which others share.
            await asyncio.wait(waiting, timeout=self._limits.publish_timeout_seconds)
        return [self._outcome(publish) for publish in publishes]

    async def publish_many(self, events: Events, *, source: str, sender: SenderHeaders = ()) -> list[RecordPosition]:
        """Publish in order, as fast as Kafka takes it; return the positions in the same order.

        Raises at the first event that fails; those before it and some after it may have been written.
        """
        return [position async for position in self.publish_each(events, source=source, sender=sender)]

    async def publish_each(
        self, events: Events, *, source: str, sender: SenderHeaders = ()
    ) -> AsyncIterator[RecordPosition]:
        """Publish as `publish_many` does; yield each position once it and all before it are known, and hold few.

        A EventOfSender's own headers of its sender come before `sender`.
        """
        waiting: deque[PendingPublish] = deque()
        async for event in _each(events):
            while (publish := self._submit_if_room(event, source, sender)) is None:
                if waiting:
                    yield await self.await_acknowledgement(waiting.popleft())
                else:  # others have filled the producer
                    await asyncio.sleep(ROOM_POLL_SECONDS)
            waiting.append(publish)
            while waiting and waiting[0].done():
                yield waiting.popleft().position()
        while waiting:
            yield await self.await_acknowledgement(waiting.popleft())

    def _submit_if_room(self, event: AnyEvent, source: str, sender: SenderHeaders) -> PendingPublish | None:
        if isinstance(event, EventOfSender):
            sender = (*event.sender, *sender)
            event = event.event
        try:
            return self.submit(event, source=source, sender=sender)
        except Overloaded:
            if self._records_in_flight == 0:
                raise
            return None

    def _outcome(self, publish: PendingPublish) -> RecordPosition | StreamsError:
        try:
            return publish.position() if publish.done() else self._timed_out()
        except StreamsError as error:
            return error

    def _timed_out(self) -> OutcomeUnknown:
        seconds = self._limits.publish_timeout_seconds
        return OutcomeUnknown(why=f"There was no answer within {seconds:g} s.", retry_after_seconds=2)

    def _usable(self) -> ConnectedProducer:
        if self._fatal_error is not None:
            raise self._fatal_error
        if self._connected is None or self._connected.fatal.is_set():
            raise KafkaUnavailable(why="Plant is not connected to Kafka at the moment.")
        return self._connected

    def _reserve(self, size_bytes: int) -> None:
        if (
            self._records_in_flight >= self._limits.in_flight_records
            or self._bytes_in_flight + size_bytes > self._limits.in_flight_bytes
        ):
            raise Overloaded(why=f"{self._records_in_flight} records wait for Kafka.")
        self._records_in_flight += 1
        self._bytes_in_flight += size_bytes

    def _release(self, records: int, size_bytes: int) -> None:
        self._records_in_flight -= records
        self._bytes_in_flight -= size_bytes
        metrics.PRODUCER_RECORDS_IN_FLIGHT.set(self._records_in_flight)
        metrics.PRODUCER_BYTES_IN_FLIGHT.set(self._bytes_in_flight)

    def _use(self, connected: ConnectedProducer) -> None:
        """Use a new connection, unless a topic's partition count differs from that of the first connection."""
        for topic, count in connected.partition_counts.items():
            expected = self._partition_counts.setdefault(topic, count)
            if expected != count:
                connected.fail_permanently(PartitionCountChanged(topic, expected, count))
        connected.release = self._release
        self._connected = connected
        metrics.PRODUCER_CONNECTS.inc()

    async def _keep_connected(self) -> None:
        last_error = ""
        while self._fatal_error is None:
            if self._connected is None:
                try:
                    self._use(await ConnectedProducer.connect(self._settings, self._topic_of.values()))
                except Exception as error:  # the next attempt may succeed; publishes say KafkaUnavailable meanwhile
                    if (why := str(error) or repr(error)) != last_error:
                        log.warning("producer.not_connected", why=why)
                        last_error = why
                    await asyncio.sleep(self._limits.reconnect_backoff_seconds)
                    continue
            last_error = ""
            connected = self._connected
            assert connected is not None
            await connected.fatal.wait()
            self._fatal_error = connected.fatal_error
            self._connected = None
            closing = asyncio.create_task(connected.close(0), name="producer-close")
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)


def record_size_bytes(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Return what a record counts for: it is never larger. One with more than RECORD_MAX_BYTES is not taken."""
    size_bytes = len(key or b"") + len(value or b"") + RECORD_OVERHEAD_BYTES
    for name, content in headers:
        size_bytes += HEADER_NAME_BYTES * len(name) + len(content or b"") + HEADER_OVERHEAD_BYTES
    return size_bytes


async def _each(events: Events) -> AsyncIterator[AnyEvent]:
    """Yield every event; yield to the event loop every TURN_EVERY_RECORDS, so that batches leave meanwhile."""
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
        return
    for count, event in enumerate(events, 1):
        yield event
        if count % TURN_EVERY_RECORDS == 0:
            await asyncio.sleep(0)
