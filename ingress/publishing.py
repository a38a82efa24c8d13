"""Publishing an event from outside: limits, deduplication, Kafka's acknowledgement, whatever request brought it."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import UUID

from ingress.deduplication import DeduplicationCache, IdReused
from ingress.payloads import Incoming
from ingress.producers import ProducerPolicy
from ingress.rates import Rates, whole_seconds
from runtime import metrics
from runtime.clock import Clock
from schemas import codec
from schemas.errors import Unencodable
from schemas.sender_headers import sender_headers
from server.problems import Problem, retry_after
from streams.errors import KafkaUnavailable, Overloaded, RecordTooLarge, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.record_position import RecordPosition

UNAVAILABLE_RETRY_SECONDS: Final = 5


class HttpAnswer(NamedTuple):
    """The answer to a request that was read whole."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Submission(NamedTuple):
    """An event that was submitted: its id, its pending publish, and whether the cache had that of the same event."""

    event_id: UUID
    publish: PendingPublish
    repeated: bool


class IngressPublisher:
    """Publisher of what producers may send. One a process, with the deduplication cache and the producers' rates."""

    def __init__(self, producer: EventProducer, clock: Clock) -> None:
        self._producer = producer
        self._clock = clock
        self._cache = DeduplicationCache()
        self._rates = Rates()
        outcomes = ("accepted", "refused")
        self._accepted, self._refused = (metrics.INGRESS_EVENTS.labels(outcome) for outcome in outcomes)

    def wait_seconds(self, policy: ProducerPolicy) -> float:
        """Return how long until the producer may send again; 0: now."""
        now_seconds = self._clock.monotonic_seconds()
        return self._rates.wait_seconds(policy.name, policy.rate_per_second, policy.burst, now_seconds)

    def require_enabled(self, policy: ProducerPolicy) -> None:
        """Raise Problem (403) where the producer is disabled."""
        if policy.disabled:
            raise Problem("forbidden", "This producer is disabled.")

    def check(self, policy: ProducerPolicy) -> None:
        """Raise Problem (403, 429) where the producer is disabled or over its rate."""
        self.require_enabled(policy)
        wait_seconds = self.wait_seconds(policy)
        if wait_seconds:
            metrics.INGRESS_LIMITED.labels(policy.name).inc()
            raise Problem(
                "rate-limited",
                f"{policy.rate_per_second:g} events a second are allowed.",
                headers=(retry_after(whole_seconds(wait_seconds)),),
            )

    def consume(self, policy: ProducerPolicy, events: int) -> None:
        """Count events against the rate of a producer that was checked."""
        self._rates.consume(policy.name, events)

    def restore(self, policy: ProducerPolicy, events: int) -> None:
        """Give back what was consumed for events that were repeats, or were answered with 503."""
        self._rates.restore(policy.name, events)

    def submit(self, incoming: Incoming, policy: ProducerPolicy, traceparent: str | None) -> Submission:
        """Begin to publish an event. Return its pending publish: a new one, or that of the same event before.

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
            earlier = self._cache.get(event_id, digest, now_seconds)
        except IdReused:
            metrics.INGRESS_REPEATS.labels(outcome="refused").inc()
            self._refused.inc()
            raise Problem("id-reused", "An id names one message; a changed message needs a new id.") from None
        if earlier is not None:
            metrics.INGRESS_REPEATS.labels(outcome="answered" if earlier.done() else "joined").inc()
            return Submission(event.event_id, earlier, True)
        try:
            publish = self._producer.submit(
                event,
                source=incoming.source,
                traceparent=incoming.traceparent or traceparent,
                value=value,
                sender=sender_headers(policy.name, incoming.message_id, key_id=policy.key_id),
            )
        except StreamsError as error:
            raise unavailable(error) from error
        self._cache.put(event_id, digest, publish, now_seconds)
        return Submission(event.event_id, publish, False)

    async def publish(self, incoming: Incoming, policy: ProducerPolicy, traceparent: str | None) -> RecordPosition:
        """Publish one event and return its position once Kafka has acknowledged it in time.

        It consumes the producer's rate unless it is a repeat, or is to be sent again. Raises what `submit` raises, and
        Problem (503).
        """
        self.consume(policy, 1)
        repeated = False
        try:
            event = self.submit(incoming, policy, traceparent)
            if event.repeated:
                repeated = True
                self.restore(policy, 1)
            return await self.await_acknowledgement(event.publish)
        except Problem as problem:
            if problem.status >= 500 and not repeated:
                self.restore(policy, 1)
            raise

    async def await_acknowledgement(self, publish: PendingPublish) -> RecordPosition:
        """Return the event's position once Kafka has acknowledged it in time. Raises Problem (503)."""
        try:
            position = await self._producer.await_acknowledgement(publish)
        except StreamsError as error:
            raise unavailable(error) from error
        self._accepted.inc()
        return position

    async def await_each(self, publishes: Collection[PendingPublish]) -> list[RecordPosition | Problem]:
        """Do the same for many, within the time that one may take. Return each one's position or problem, in order."""
        outcomes = await self._producer.await_each(publishes)
        self._accepted.inc(sum(isinstance(each, RecordPosition) for each in outcomes))
        return [each if isinstance(each, RecordPosition) else unavailable(each) for each in outcomes]

    def evict_expired(self) -> bool:
        """Drop entries of the deduplication cache that are past their age; return whether some are left."""
        return self._cache.evict_expired(self._clock.monotonic_seconds())


def accepted(event_id: UUID, position: RecordPosition) -> bytes:
    """Return the JSON of an event's id and position."""
    return b'{"event_id":"%b","topic":"%b","partition":%d,"offset":%d}' % (
        codec.json_text(event_id),
        position.topic.encode(),
        position.partition,
        position.offset,
    )


def unavailable(error: StreamsError) -> Problem:
    """Return the answer to a publish that failed."""
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
