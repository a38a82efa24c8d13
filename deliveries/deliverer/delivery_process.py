"""What the deliverers of a process's partitions share, and the bounds that they keep to."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.attempt_records import OutgoingRecord
from deliveries.deliverer.attempt_slots import AttemptSlots
from deliveries.deliverer.endpoint_cache import EndpointCache
from deliveries.failure_streak import StreakPolicy
from deliveries.guard.connections import DeliveryClient
from runtime.clock import Clock
from runtime.settings import Settings
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC
from schemas.endpoint_events import ENDPOINT_EVENTS_TOPIC
from streams.errors import KafkaUnavailable, Overloaded, StreamsError
from streams.pending_publish import PendingPublish
from streams.producer import EventProducer
from streams.topics import DEAD_DELIVERIES_TOPIC, RETRY_TOPICS

PUBLISH_RETRY_SECONDS: Final = 0.2
OVERLOADED_SECONDS: Final = 0.01


class DeliveryTopics(msgspec.Struct, frozen=True):
    """The names of the topics of deliveries, which differ from the catalogue's in a later generation."""

    generation: str = ""
    """What follows each name: empty, or a dash and a number."""

    @property
    def deliveries(self) -> str:
        """Where deliveries come from."""
        return DELIVERIES_TOPIC + self.generation

    @property
    def retries(self) -> tuple[str, ...]:
        """Where they wait, by the delay."""
        return tuple(name + self.generation for name in RETRY_TOPICS)

    @property
    def attempts(self) -> str:
        """Where it is written what came of each attempt."""
        return ATTEMPTS_TOPIC + self.generation

    @property
    def endpoint_events(self) -> str:
        """Where it is written what changed about endpoints."""
        return ENDPOINT_EVENTS_TOPIC + self.generation

    @property
    def written(self) -> tuple[str, ...]:
        """All topics that a deliverer writes to."""
        return (*self.retries, DEAD_DELIVERIES_TOPIC + self.generation, self.attempts)


class DelivererLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a process's memory and of each endpoint's share."""

    unfinished_max: int = 4_000
    """Deliveries of a topic's partition that were read and are not done."""
    unrecorded_max: int = 256
    """Attempts of a partition that have ended or are under way, and are not written down: a kill repeats them."""
    attempts_per_endpoint: int = 10
    queue_max: int = 500
    """Deliveries of an endpoint that are due and wait in memory, where others have deliveries too."""
    round_seconds: float = 0.02
    """How long ends of attempts are gathered before they are published."""
    write_seconds: float = 0.1
    """How long ends that were published wait at most to be written to Postgres, where nothing waits for that.

    Shorter than the shortest wait, whose row is written by then."""
    unwritten_max: int = 64
    """Ends of a partition that wait like that."""
    poll_seconds: float = 0.1
    """How often it is seen whether an endpoint gets attempts again of which deliveries are due in Postgres."""
    look_seconds: float = 0.05
    """How far apart Postgres is asked for deliveries that are due."""
    postponed_seconds: float = 1.0
    """How long a delivery waits at least in Postgres."""


class DeliveryProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process's client, producer, endpoints and slots."""

    settings: Settings
    client: DeliveryClient
    producer: EventProducer
    endpoints: EndpointCache
    slots: AttemptSlots
    clock: Clock
    topics: DeliveryTopics
    limits: DelivererLimits = DelivererLimits()
    breaker: BreakerPolicy = BreakerPolicy()
    streaks: StreakPolicy | None = StreakPolicy()
    """None: an endpoint that fails is never warned nor disabled."""

    async def publish(self, records: list[OutgoingRecord]) -> int:
        """Publish records, and return once Kafka has acknowledged each of them: again and again until it has.

        A record may be there twice. Returns the offset behind the last record of an attempt, 0 for none: all records
        are of one partition. Raises RecordTooLarge.
        """
        left, behind = records, 0
        while left:
            submitted: list[tuple[OutgoingRecord, PendingPublish]] = []
            waiting: list[OutgoingRecord] = []
            for index, record in enumerate(left):
                try:
                    submitted.append((record, self._submit(record)))
                except Overloaded:
                    waiting = left[index:]
                    break
                except KafkaUnavailable:
                    waiting = left[index:]
                    await asyncio.sleep(PUBLISH_RETRY_SECONDS)
                    break
            outcomes = await self.producer.await_each([publish for _, publish in submitted])
            failed = []
            for (record, _), outcome in zip(submitted, outcomes, strict=True):
                if isinstance(outcome, StreamsError):
                    failed.append(record)
                elif record.topic == ATTEMPTS_TOPIC:
                    behind = max(behind, outcome.offset + 1)
            if failed:
                await asyncio.sleep(PUBLISH_RETRY_SECONDS)
            elif waiting:
                await asyncio.sleep(OVERLOADED_SECONDS)
            left = failed + waiting
        return behind

    def _submit(self, record: OutgoingRecord) -> PendingPublish:
        topic = record.topic + self.topics.generation
        return self.producer.submit_record(topic, record.key, record.value, record.headers)
