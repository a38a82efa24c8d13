"""From an event that came in to Kafka's acknowledgement, whatever kind of request brought it."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import UUID

from ingress.deduplication import DeduplicationCache, IdReused
from ingress.payloads import Incoming
from ingress.problems import Problem, retry_after
from ingress.producers import ProducerPolicy
from ingress.rates import Rates, whole_seconds
from runtime import metrics
from runtime.clock import Clock
from schemas import codec
from schemas.errors import Unencodable
from streams.errors import KafkaUnavailable, Overloaded, RecordTooLarge, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition

UNAVAILABLE_RETRY_SECONDS: Final = 5


class HttpAnswer(NamedTuple):
    """What a request that was understood is answered with."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class IngressPublisher:
    """Publishes what producers may send. One a process: it holds the window of repeats and the producers' rates."""

    def __init__(self, producer: EventProducer, clock: Clock) -> None:
        self._producer = producer
        self._clock = clock
        self._cache = DeduplicationCache()
        self._rates = Rates()
        outcomes = ("accepted", "refused")
        self._accepted, self._refused = (metrics.INGRESS_EVENTS.labels(outcome) for outcome in outcomes)

    def wait_seconds(self, policy: ProducerPolicy) -> float:
        """How long until the producer may send again; 0: now."""
        now_seconds = self._clock.monotonic_seconds()
        return self._rates.wait_seconds(policy.name, policy.rate_per_second, policy.burst, now_seconds)

    def require_enabled(self, policy: ProducerPolicy) -> None:
        """Raises Problem (403) where the producer may not send."""
        if policy.disabled:
            raise Problem("forbidden", "This producer is disabled.")

    def let_in(self, policy: ProducerPolicy) -> None:
        """Raises Problem (403, 429) where the producer may not send, or not yet."""
        self.require_enabled(policy)
        wait_seconds = self.wait_seconds(policy)
        if wait_seconds:
            metrics.INGRESS_LIMITED.labels(policy.name).inc()
            raise Problem(
                "rate-limited",
                f"{policy.rate_per_second:g} events a second are allowed.",
                headers=(retry_after(whole_seconds(wait_seconds)),),
            )

    def pay(self, policy: ProducerPolicy, events: int) -> None:
        """Count events of a producer that was let in."""
        self._rates.pay(policy.name, events)

    def submit(self, incoming: Incoming, policy: ProducerPolicy, traceparent: str | None) -> PendingPublish:
        """The event's publish: a new one, or that of the same event before.

        Raises Problem: forbidden (403), id-reused (409), body-too-large (413), event (422), or 503 where nothing was
        sent.
        """
        event = incoming.event
        try:
            if policy.event_types is not None and event.event_type not in policy.event_types:
                raise Problem("forbidden", f"This producer may not send {event.event_type}.")
            value = codec.encode_checked(event)
        except Unencodable as error:
            self._refused.inc()
            raise Problem("event", error.reason) from error
        except Problem:
            self._refused.inc()
            raise
        event_id, digest = event.event_id.bytes, sha256(value).digest()
        now_seconds = self._clock.monotonic_seconds()
        try:
            seen = self._cache.get(event_id, digest, now_seconds)
        except IdReused:
            metrics.INGRESS_REPEATS.labels(outcome="refused").inc()
            self._refused.inc()
            raise Problem("id-reused", "An id names one message for ever; a changed message needs a new id.") from None
        if seen is not None:
            metrics.INGRESS_REPEATS.labels(outcome="answered" if seen.done() else "joined").inc()
            return seen
        try:
            publish = self._producer.submit(
                event, source=incoming.source, traceparent=incoming.traceparent or traceparent, value=value
            )
        except StreamsError as error:
            raise unavailable(error) from error
        self._cache.put(event_id, digest, publish, now_seconds)
        return publish

    async def settle(self, publish: PendingPublish) -> RecordPosition:
        """Where the event is, once Kafka has acknowledged it. Raises Problem (503) where it has not in time."""
        try:
            position = await self._producer.await_acknowledgement(publish)
        except StreamsError as error:
            raise unavailable(error) from error
        self._accepted.inc()
        return position

    async def settle_each(self, publishes: Collection[PendingPublish]) -> list[RecordPosition | Problem]:
        """The same for many, in order, in the time that one may take: each one's position or problem."""
        settled = await self._producer.await_each(publishes)
        self._accepted.inc(sum(isinstance(each, RecordPosition) for each in settled))
        return [each if isinstance(each, RecordPosition) else unavailable(each) for each in settled]

    def evict_expired(self) -> None:
        """Drop the entries of the deduplication cache that are past their age."""
        self._cache.evict_expired(self._clock.monotonic_seconds())


def accepted(event_id: UUID, position: RecordPosition) -> bytes:
    """The JSON that says where an event is."""
    return b'{"event_id":"%b","topic":"%b","partition":%d,"offset":%d}' % (
        codec.json_text(event_id),
        position.topic.encode(),
        position.partition,
        position.offset,
    )


def unavailable(error: StreamsError) -> Problem:
    """What a failed publish is answered with."""
    if isinstance(error, RecordTooLarge):
        return Problem("body-too-large", error.why)
    kind = "overloaded" if isinstance(error, Overloaded) else "kafka-unavailable"
    seconds = error.retry_after_seconds if isinstance(error, KafkaUnavailable) else UNAVAILABLE_RETRY_SECONDS
    return Problem(
        kind,
        "Send it again with the same id: it is stored once.",
        headers=(retry_after(seconds),),
        reason=f"{type(error).__name__}: {error}",
    )
