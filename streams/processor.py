"""A processor for code: it publishes Genesis events, and waits until a read model shows them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from uuid import UUID

from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, SkillValidated
from streams.catalogue_processor import CatalogueProcessor
from streams.event_processor import in_one_order
from streams.record_position import RecordPosition


class GenesisEventProcessor(CatalogueProcessor):
    """Publishes every Genesis event. `operations.services.processor.build_processor` makes one that can wait too.

    Each `process_…` returns the event's position once Kafka has it safely, and raises as `EventProducer.publish` does.
    With a `message_id` a call can be repeated: the same id is stored once. Without one each call is a new event. A call
    without `occurred_at` gets the time of the clock, which is not compared with that of a repeat without one.

        async with build_processor(settings) as processor:
            position = await processor.process_agent_available(agent_id)
            await processor.wait_for(position)
    """

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
        make = partial(
            AgentOnboarded,
            agent_id=agent_id,
            name=name or str(agent_id),
            industry_id=industry_id,
            job_role_id=job_role_id,
            team_id=team_id,
            skill_ids=in_one_order(skill_ids),
        )
        return await self._publish(make, message_id, occurred_at)

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
        make = partial(
            SkillValidated,
            skill_id=skill_id,
            agent_id=agent_id,
            validator_id=validator_id,
            score=score,
        )
        return await self._publish(make, message_id, occurred_at)

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
        make = partial(
            AgentAvailable,
            agent_id=agent_id,
            available=available,
            available_from=available_from,
        )
        return await self._publish(make, message_id, occurred_at)

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
        make = partial(
            AgentRated,
            agent_id=agent_id,
            rater_id=rater_id,
            rating=rating,
            skill_id=skill_id,
        )
        return await self._publish(make, message_id, occurred_at)
