"""A processor for code: it publishes Genesis events, and waits until a read model shows them."""

from __future__ import annotations

from collections.abc import Iterable, Set
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
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, Event, SkillValidated
from schemas.sender_headers import sender_headers
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC


class Waiter(Protocol):
    """Waits for a read model; `projections.checkpoint_waiter.CheckpointWaiter` does so by its checkpoint."""

    async def wait_for(self, position: RecordPosition, projection: str, timeout_seconds: float) -> None:
        """Return when the read model has applied the event at this position. Raises CaughtUpTooLate."""

    async def close(self) -> None:
        """Disconnect."""


class GenesisEventProcessor:
    """Publishes the four Genesis events. `operations.services.processor.build_processor` makes one that can wait too.

    Each `process_…` returns the event's position once Kafka has it safely, and raises as `EventProducer.publish` does.
    With a `message_id` a call can be repeated: the same id is stored once. Without one each call is a new event. A call
    without `occurred_at` gets the time of the clock, which is not compared with that of a repeat without one.

        async with build_processor(settings) as processor:
            position = await processor.process_agent_available(agent_id)
            await processor.wait_for(position)
    """

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

    async def process_agent_onboarded(
        self,
        agent_id: UUID,
        *,
        name: str = "",
        skill_ids: Iterable[UUID] = (),
        industry_id: UUID | None = None,
        job_role_id: UUID | None = None,
        team_id: UUID | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that an agent joined. Without a name its id is its name."""
        return await self._publish(
            AgentOnboarded(
                event_id=self._event_id(message_id),
                agent_id=agent_id,
                occurred_at=self._utc(occurred_at),
                name=name or str(agent_id),
                industry_id=industry_id,
                job_role_id=job_role_id,
                team_id=team_id,
                skill_ids=_in_one_order(skill_ids),
            ),
            message_id,
            clock_stamped=occurred_at is None,
        )

    async def process_skill_validated(
        self,
        skill_id: UUID,
        *,
        validator_id: UUID,
        score: int,
        agent_id: UUID | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that a skill was tested, an agent's or in general; `score` is 0 to 100."""
        return await self._publish(
            SkillValidated(
                event_id=self._event_id(message_id),
                skill_id=skill_id,
                occurred_at=self._utc(occurred_at),
                agent_id=agent_id,
                validator_id=validator_id,
                score=score,
            ),
            message_id,
            clock_stamped=occurred_at is None,
        )

    async def process_agent_available(
        self,
        agent_id: UUID,
        *,
        available: bool = True,
        available_from: datetime | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that an agent's availability changed, either way."""
        return await self._publish(
            AgentAvailable(
                event_id=self._event_id(message_id),
                agent_id=agent_id,
                occurred_at=self._utc(occurred_at),
                available=available,
                available_from=available_from,
            ),
            message_id,
            clock_stamped=occurred_at is None,
        )

    async def process_agent_rated(
        self,
        agent_id: UUID,
        *,
        rater_id: UUID,
        rating: int,
        skill_id: UUID | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that someone rated an agent's work, from 1 to 5."""
        return await self._publish(
            AgentRated(
                event_id=self._event_id(message_id),
                agent_id=agent_id,
                occurred_at=self._utc(occurred_at),
                rater_id=rater_id,
                rating=rating,
                skill_id=skill_id,
            ),
            message_id,
            clock_stamped=occurred_at is None,
        )

    async def wait_for(
        self, position: RecordPosition, projection: str = "agents", timeout_seconds: float = 10.0
    ) -> None:
        """Return when the read model has applied the event at this position.

        Raises CaughtUpTooLate, and ConfigurationError where the processor was made without a waiter.
        """
        if self._waiter is None:
            raise ConfigurationError(
                "This processor can't wait for a read model.",
                why="It was made without a waiter.",
                next_step="operations.services.processor.build_processor(settings)",
            )
        await self._waiter.wait_for(position, projection, timeout_seconds)

    async def _publish(self, event: Event, message_id: str, *, clock_stamped: bool) -> RecordPosition:
        sender = sender_headers(self._producer_name, message_id or None)
        stamped = ClockStamped(event) if clock_stamped else event
        return await self._producer.publish(stamped, source=self._source, sender=sender)

    def _event_id(self, message_id: str) -> UUID:
        return event_id(self._producer_name, message_id or uuid4().hex)

    def _utc(self, moment: datetime | None) -> datetime:
        """Return a time in UTC, now where there is none. Raises Unencodable for one without a zone."""
        if moment is not None and moment.tzinfo is None:
            raise Unencodable(f"occurred_at {moment.isoformat()} has no time zone, such as datetime.UTC.")
        return (moment or self._clock.now()).astimezone(UTC)


def _in_one_order(ids: Iterable[UUID]) -> tuple[UUID, ...]:
    """Return ids in their own order; a set's are sorted, since it may have another one in a repeated call."""
    return tuple(sorted(ids) if isinstance(ids, Set) else ids)
