"""The calls of the processor that change the catalogue: skills, job roles, industries, teams, and what they become."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import msgspec

from schemas.entity_states import (
    AgentState,
    EntityType,
    IndustryState,
    JobRoleState,
    Seniority,
    SkillCategory,
    SkillState,
    TeamState,
)
from schemas.events import EntityAmended, EntityRetired, IndustryDefined, JobRoleDefined, SkillRegistered, TeamFormed
from streams.event_processor import EventProcessor, in_one_order
from streams.record_position import RecordPosition

EntityState = AgentState | SkillState | JobRoleState | IndustryState | TeamState

KINDS: Final[dict[type[EntityState], EntityType]] = {
    AgentState: "agent",
    SkillState: "skill",
    JobRoleState: "job_role",
    IndustryState: "industry",
    TeamState: "team",
}
"""Which kind of entity each state is of; the field of an event has that name."""
_IDS: Final = ("skill_ids", "required_skill_ids", "member_ids")


class CatalogueProcessor(EventProcessor):
    """Publishes the events of the catalogue."""

    async def process_skill_registered(
        self,
        skill_id: UUID,
        *,
        name: str,
        category: SkillCategory,
        description: str = "",
        external_id: str | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that a skill was added to the catalogue."""
        make = partial(
            SkillRegistered,
            skill_id=skill_id,
            name=name,
            description=description,
            category=category,
            external_id=external_id,
        )
        return await self._publish(make, message_id, occurred_at)

    async def process_job_role_defined(
        self,
        job_role_id: UUID,
        *,
        name: str,
        description: str = "",
        seniority: Seniority | None = None,
        industry_id: UUID | None = None,
        required_skill_ids: Iterable[UUID] = (),
        external_id: str | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that a job role was added to the catalogue."""
        make = partial(
            JobRoleDefined,
            job_role_id=job_role_id,
            name=name,
            description=description,
            seniority=seniority,
            industry_id=industry_id,
            required_skill_ids=in_one_order(required_skill_ids),
            external_id=external_id,
        )
        return await self._publish(make, message_id, occurred_at)

    async def process_industry_defined(
        self,
        industry_id: UUID,
        *,
        name: str,
        description: str = "",
        external_id: str | None = None,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that an industry was added to the catalogue."""
        make = partial(
            IndustryDefined,
            industry_id=industry_id,
            name=name,
            description=description,
            external_id=external_id,
        )
        return await self._publish(make, message_id, occurred_at)

    async def process_team_formed(
        self,
        team_id: UUID,
        *,
        name: str,
        description: str = "",
        job_role_id: UUID | None = None,
        industry_id: UUID | None = None,
        member_ids: Iterable[UUID] = (),
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that agents were put together as a team."""
        make = partial(
            TeamFormed,
            team_id=team_id,
            name=name,
            description=description,
            job_role_id=job_role_id,
            industry_id=industry_id,
            member_ids=in_one_order(member_ids),
        )
        return await self._publish(make, message_id, occurred_at)

    async def process_entity_amended(
        self,
        entity_id: UUID,
        state: EntityState,
        *,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that an entity's data was corrected; `state` is all of it afterwards, and says which kind it is."""
        make = partial(
            EntityAmended,
            entity_id=entity_id,
            **_of_kind(state),
        )
        return await self._publish(make, message_id, occurred_at)

    async def process_entity_retired(
        self,
        entity_id: UUID,
        state: EntityState,
        *,
        message_id: str = "",
        occurred_at: datetime | None = None,
    ) -> RecordPosition:
        """Publish that an entity is no longer in use; `state` is its last one, and says which kind it is."""
        make = partial(
            EntityRetired,
            entity_id=entity_id,
            **_of_kind(state),
        )
        return await self._publish(make, message_id, occurred_at)


def _of_kind(state: EntityState) -> dict[str, Any]:
    """Return the fields of an event with a state: its kind, and the state under the kind's name."""
    kind = KINDS[type(state)]
    sets = {name: in_one_order(getattr(state, name)) for name in _IDS if hasattr(state, name)}
    return {"entity_type": kind, kind: msgspec.structs.replace(state, **sets)}
