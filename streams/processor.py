"""The same way in, from code: publish Genesis events, and wait until a read model shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self
from uuid import UUID, uuid4

from sqlalchemy import text

from database.connector import connect
from runtime.clock import Clock, SystemClock
from runtime.settings import Settings
from schemas.event_id import event_id
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, Event, SkillValidated
from streams.errors import CaughtUpTooLate
from streams.producer import EventProducer
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC

FIRST_PAUSE_SECONDS: Final = 0.005
LONGEST_PAUSE_SECONDS: Final = 0.2

# While a read model is being rebuilt it has two versions; the one that readers see is never behind the other.
_NEXT_OFFSET: Final = text("""
    SELECT max(next_offset) FROM checkpoints
    WHERE projection = :projection AND topic = :topic AND partition = :partition
""")


class GenesisEventProcessor:
    """Publishes the four Genesis events. Use it as an async context manager.

    Each `process_…` returns the event's position once Kafka has it safely, and raises as `EventProducer.publish` does.
    Give `message_id` to be able to repeat a call: the same id is stored once. Without one each call is a new event.

        async with GenesisEventProcessor(settings) as processor:
            position = await processor.process_agent_available(agent_id)
            await processor.wait_for(position)
    """

    def __init__(
        self,
        settings: Settings,
        *,
        producer_name: str = "processor",
        source: str = "plant/processor",
        events_topic: str = EVENTS_TOPIC,
        clock: Clock | None = None,
    ) -> None:
        self._producer = EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=events_topic)
        self._database = connect(settings, "api")
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
        await self._database.close()

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
        """An agent joined. Its name is its id where none is given."""
        return await self._publish(
            AgentOnboarded(
                event_id=self._event_id(message_id),
                agent_id=agent_id,
                occurred_at=self._moment(occurred_at),
                name=name or str(agent_id),
                industry_id=industry_id,
                job_role_id=job_role_id,
                team_id=team_id,
                skill_ids=tuple(skill_ids),
            )
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
        """A skill was tested, of one agent or as such; `score` is 0 to 100."""
        return await self._publish(
            SkillValidated(
                event_id=self._event_id(message_id),
                skill_id=skill_id,
                occurred_at=self._moment(occurred_at),
                agent_id=agent_id,
                validator_id=validator_id,
                score=score,
            )
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
        """An agent's availability changed, either way."""
        return await self._publish(
            AgentAvailable(
                event_id=self._event_id(message_id),
                agent_id=agent_id,
                occurred_at=self._moment(occurred_at),
                available=available,
                available_from=available_from,
            )
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
        """Someone rated an agent's work, from 1 to 5."""
        return await self._publish(
            AgentRated(
                event_id=self._event_id(message_id),
                agent_id=agent_id,
                occurred_at=self._moment(occurred_at),
                rater_id=rater_id,
                rating=rating,
                skill_id=skill_id,
            )
        )

    async def wait_for(
        self, position: RecordPosition, projection: str = "agents", timeout_seconds: float = 10.0
    ) -> None:
        """Return when the read model has taken in the event at this position. Raises CaughtUpTooLate."""
        deadline = self._clock.monotonic_seconds() + timeout_seconds
        pause_seconds = FIRST_PAUSE_SECONDS
        while (next_offset := await self._next_offset(position, projection)) <= position.offset:
            if self._clock.monotonic_seconds() + pause_seconds > deadline:
                raise CaughtUpTooLate(
                    f"The read model {projection} has not reached {position} within {timeout_seconds:g} s.",
                    why=f"It is at offset {next_offset}; a worker may be down or behind.",
                    next_step="plant status",
                )
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, LONGEST_PAUSE_SECONDS)

    async def _next_offset(self, position: RecordPosition, projection: str) -> int:
        values = {"projection": projection, "topic": position.topic, "partition": position.partition}
        async with self._database.transaction() as connection:
            return (await connection.execute(_NEXT_OFFSET, values)).scalar_one() or 0

    async def _publish(self, event: Event) -> RecordPosition:
        return await self._producer.publish(event, source=self._source)

    def _event_id(self, message_id: str) -> UUID:
        return event_id(self._producer_name, message_id or uuid4().hex)

    def _moment(self, given: datetime | None) -> datetime:
        return (given or self._clock.now()).astimezone(UTC)
