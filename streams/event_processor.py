"""The part of the processor that all events share: it connects, publishes, waits, and makes calls repeatable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID, uuid4

from runtime.clock import Clock, SystemClock
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from schemas.clock_fields import ClockStamped
from schemas.errors import Unencodable
from schemas.event_id import event_id
from schemas.events import Event
from schemas.sender_headers import sender_headers
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC


class Waiter(Protocol):
    """Waits for read models; `projections.checkpoint_waiter.ReadModels` does so by their checkpoints."""

    async def wait_for(self, position: RecordPosition, timeout_seconds: float, *models: str) -> None:
        """Return when these read models, or all of them, have applied the event at this position.

        Raises CaughtUpTooLate.
        """

    async def close(self) -> None:
        """Disconnect."""


class EventProcessor:
    """Publishes events, and waits until read models show them. GenesisEventProcessor has a call for each type."""

    def __init__(
        self,
        settings: Settings,
        waiter: Waiter | None = None,
        *,
        producer_name: str = "processor",
        source: str = "plant/processor",
        events_topic: str = EVENTS_TOPIC,
        clock: Clock | None = None,
    ) -> None:
        self._producer = EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=events_topic)
        self._waiter = waiter
        self._producer_name = producer_name
        self._source = source
        self._clock = clock or SystemClock()

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()
        if self._waiter is not None:
            await self._waiter.close()

    async def wait_for(
        self, position: RecordPosition, projection: str | None = "agents", timeout_seconds: float = 10.0
    ) -> None:
        """Return when a read model, or with None every read model, has applied the event at this position.

        Raises CaughtUpTooLate, UnknownReadModel, and ConfigurationError where the processor was made without a waiter.
        """
        if self._waiter is None:
            raise ConfigurationError(
                "This processor can't wait for a read model.",
                why="It was made without a waiter.",
                next_step="operations.services.processor.build_processor(settings)",
            )
        await self._waiter.wait_for(position, timeout_seconds, *([] if projection is None else [projection]))

    async def _publish(
        self, make: Callable[..., Event], message_id: str, occurred_at: datetime | None
    ) -> RecordPosition:
        """Publish an event that has all its fields but id and time."""
        event = make(
            event_id=event_id(self._producer_name, message_id or uuid4().hex), occurred_at=self._utc(occurred_at)
        )
        sender = sender_headers(self._producer_name, message_id or None)
        if event.nil_field is not None:
            raise Unencodable(f"{event.nil_field} is the nil id, which names nothing: leave it out.")
        stamped = ClockStamped(event) if occurred_at is None else event
        return await self._producer.publish(stamped, source=self._source, sender=sender)

    def _utc(self, moment: datetime | None) -> datetime:
        """Return a time in UTC, now where there is none. Raises Unencodable for one without a zone."""
        if moment is not None and moment.tzinfo is None:
            raise Unencodable(f"occurred_at {moment.isoformat()} has no time zone, such as datetime.UTC.")
        return (moment or self._clock.now()).astimezone(UTC)


def in_one_order(ids: Iterable[UUID]) -> tuple[UUID, ...]:
    """Return ids in their own order; a set's are sorted, since it may have another one in a repeated call."""
    return tuple(sorted(ids) if isinstance(ids, Set) else ids)
