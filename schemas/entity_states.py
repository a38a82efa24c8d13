"""The kinds of field that events share, with their limits, and the full states of the five kinds of entity."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

NO_NUL = r"^[^\x00]*$"
"""Postgres text holds no NUL characters."""

ShortStateText = Annotated[str, Meta(min_length=1, max_length=200, pattern=NO_NUL)]
LongStateText = Annotated[str, Meta(max_length=10_000, pattern=NO_NUL)]
Reason = Annotated[str, Meta(min_length=1, max_length=10_000, pattern=NO_NUL)]
Ids = Annotated[tuple[UUID, ...], Meta(max_length=1_000)]
Time = Annotated[datetime, Meta(tz=True)]

EntityType = Literal["agent", "skill", "job_role", "industry", "team"]
SkillCategory = Literal["technical", "soft_skill", "domain_expertise"]
Seniority = Literal["junior", "mid", "senior"]

EventId = Annotated[UUID, Meta(description="Id of the event: a repeat of the same message has the same id.")]
OccurredAt = Annotated[Time, Meta(description="When it happened, by the producer's clock.")]
IndustryId = Annotated[UUID, Meta(description="Industry it belongs to.")]
JobRoleId = Annotated[UUID, Meta(description="Job role it has.")]
TeamId = Annotated[UUID, Meta(description="Team it is part of.")]
SkillIds = Annotated[Ids, Meta(description="Skills it has.")]
RequiredSkillIds = Annotated[Ids, Meta(description="Skills the job role asks for.")]
MemberIds = Annotated[Ids, Meta(description="Agents in the team.")]
DisplayName = Annotated[ShortStateText, Meta(description="Name shown to people; never a person's name.")]
EntityDescription = Annotated[LongStateText, Meta(description="What it is, in words; nothing about a person.")]
ExternalId = Annotated[
    ShortStateText, Meta(description="Its identifier in the catalogue it comes from, such as an ESCO URI.")
]


class AgentState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything known of an agent at one moment."""

    name: DisplayName
    industry_id: IndustryId | None = None
    job_role_id: JobRoleId | None = None
    team_id: TeamId | None = None
    skill_ids: SkillIds
    status: Annotated[ShortStateText, Meta(description="Where it stands in its life, such as `onboarded`.")]
    available: Annotated[bool, Meta(description="Whether it takes work now.")]


class SkillState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything known of a skill at one moment."""

    name: DisplayName
    description: EntityDescription
    category: Annotated[SkillCategory, Meta(description="Kind of skill.")]
    external_id: ExternalId | None = None


class JobRoleState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything known of a job role at one moment."""

    name: DisplayName
    description: EntityDescription
    seniority: Annotated[Seniority, Meta(description="How senior it is.")] | None = None
    industry_id: IndustryId | None = None
    required_skill_ids: RequiredSkillIds
    external_id: ExternalId | None = None


class IndustryState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything known of an industry at one moment."""

    name: DisplayName
    description: EntityDescription
    external_id: ExternalId | None = None


class TeamState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything known of a team at one moment."""

    name: DisplayName
    description: EntityDescription
    job_role_id: JobRoleId | None = None
    industry_id: IndustryId | None = None
    member_ids: MemberIds
