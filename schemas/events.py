"""Every event Plant knows, as frozen structs: the one source of the Avro schemas, the limits and the reference page.

Field order is the Avro field order. Limits are msgspec `Meta`; encoding, decoding and block decoding all hold to them.
UUIDs are `uuid.UUID`, times are aware datetimes with microseconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Self
from uuid import UUID

import msgspec
from msgspec import Meta

from schemas.entity_states import (
    AgentState,
    DisplayName,
    EntityDescription,
    EntityType,
    EventId,
    ExternalId,
    IndustryId,
    IndustryState,
    JobRoleId,
    JobRoleState,
    MemberIds,
    OccurredAt,
    Reason,
    RequiredSkillIds,
    Seniority,
    ShortStateText,
    SkillCategory,
    SkillIds,
    SkillState,
    TeamId,
    TeamState,
    Time,
)

NIL_ID = UUID(int=0)
"""The id of no thing (RFC 9562, section 5.9)."""


class RecordValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The value of a record, with an Avro schema of its own: an event, or a control record (schemas/control.py)."""

    event_type: ClassVar[str]
    """CloudEvents type, such as `genesis.agent.onboarded`."""
    topic: ClassVar[str] = "genesis.events"
    """The topic of its schema's subject."""

    event_id: EventId

    @classmethod
    def belongs_on(cls, topic: str) -> bool:
        """Return whether a logical topic may carry it."""
        return topic == cls.topic


class Event(RecordValue, frozen=True, kw_only=True):
    """Something that happened to one entity."""

    entity_field: ClassVar[str]
    """The field that holds the entity's id, which is the record's key."""
    fields_without_nil: ClassVar[tuple[str, ...]] = ()
    """Optional ids whose nil id would be taken for none, so producers send none (docs/decisions/0059)."""

    @property
    def entity_type(self) -> str:
        """`agent`, `skill`, ...: a constant of most types, data in amended and retired."""
        raise NotImplementedError

    @property
    def entity_id(self) -> UUID:
        """The id of the entity that the event is about."""
        entity_id: UUID = getattr(self, self.entity_field)
        return entity_id

    @property
    def occurred_at(self) -> datetime:
        """When it happened, by the producer's clock; a field of each event."""
        raise NotImplementedError

    @property
    def nil_field(self) -> str | None:
        """The first of `fields_without_nil` that holds the nil id; None: none does."""
        return next((name for name in self.fields_without_nil if getattr(self, name) == NIL_ID), None)

    def without_nil(self) -> Self:
        """Return the event as producers may send it, and as folds read it: with null for the nil id in those fields."""
        return self if (name := self.nil_field) is None else msgspec.structs.replace(self, **{name: None}).without_nil()


STATE_FIELDS = ("agent", "skill", "job_role", "industry", "team")
"""Fields of amended and retired. Exactly one is set: the one that `entity_type` names."""


class AgentOnboarded(Event, frozen=True, kw_only=True):
    """An agent joined and can be given work once it is available."""

    event_type: ClassVar[str] = "genesis.agent.onboarded"
    entity_type: ClassVar[str] = "agent"
    entity_field: ClassVar[str] = "agent_id"

    agent_id: Annotated[UUID, Meta(description="The agent that joined.")]
    occurred_at: OccurredAt
    name: DisplayName
    industry_id: IndustryId | None = None
    job_role_id: JobRoleId | None = None
    team_id: TeamId | None = None
    skill_ids: SkillIds


class AgentAvailable(Event, frozen=True, kw_only=True):
    """An agent's availability changed, either way."""

    event_type: ClassVar[str] = "genesis.agent.available"
    entity_type: ClassVar[str] = "agent"
    entity_field: ClassVar[str] = "agent_id"

    agent_id: Annotated[UUID, Meta(description="The agent.")]
    occurred_at: OccurredAt
    available: Annotated[bool, Meta(description="Whether it takes work from now on.")]
    available_from: Annotated[Time, Meta(description="When it will take work, where that is known.")] | None = None


class AgentRated(Event, frozen=True, kw_only=True):
    """Someone rated an agent's work."""

    event_type: ClassVar[str] = "genesis.agent.rated"
    entity_type: ClassVar[str] = "agent"
    entity_field: ClassVar[str] = "agent_id"
    fields_without_nil: ClassVar[tuple[str, ...]] = ("skill_id",)

    agent_id: Annotated[UUID, Meta(description="The agent that was rated.")]
    occurred_at: OccurredAt
    rater_id: Annotated[UUID, Meta(description="Who rated, as an opaque id.")]
    rating: Annotated[int, Meta(ge=1, le=5, description="1 is poor, 5 is excellent.")]
    skill_id: (
        Annotated[
            UUID,
            Meta(
                description="The skill that was rated, if it was one.",
                extra_json_schema={"not": {"const": str(NIL_ID)}},
            ),
        ]
        | None
    ) = None


class SkillValidated(Event, frozen=True, kw_only=True):
    """A skill was put to the test, of one agent or as such."""

    event_type: ClassVar[str] = "genesis.skill.validated"
    entity_type: ClassVar[str] = "skill"
    entity_field: ClassVar[str] = "skill_id"

    skill_id: Annotated[UUID, Meta(description="The skill that was tested.")]
    occurred_at: OccurredAt
    agent_id: Annotated[UUID, Meta(description="The agent whose skill it is.")] | None = None
    validator_id: Annotated[UUID, Meta(description="Who tested, as an opaque id.")]
    score: Annotated[int, Meta(ge=0, le=100, description="Points out of 100.")]


class SkillRegistered(Event, frozen=True, kw_only=True):
    """A skill was added to the catalogue."""

    event_type: ClassVar[str] = "genesis.skill.registered"
    entity_type: ClassVar[str] = "skill"
    entity_field: ClassVar[str] = "skill_id"

    skill_id: Annotated[UUID, Meta(description="The new skill.")]
    occurred_at: OccurredAt
    name: DisplayName
    description: EntityDescription
    category: Annotated[SkillCategory, Meta(description="Kind of skill.")]
    external_id: ExternalId | None = None


class JobRoleDefined(Event, frozen=True, kw_only=True):
    """A job role was added to the catalogue."""

    event_type: ClassVar[str] = "genesis.job_role.defined"
    entity_type: ClassVar[str] = "job_role"
    entity_field: ClassVar[str] = "job_role_id"

    job_role_id: Annotated[UUID, Meta(description="The new job role.")]
    occurred_at: OccurredAt
    name: DisplayName
    description: EntityDescription
    seniority: Annotated[Seniority, Meta(description="How senior it is.")] | None = None
    industry_id: IndustryId | None = None
    required_skill_ids: RequiredSkillIds
    external_id: ExternalId | None = None


class IndustryDefined(Event, frozen=True, kw_only=True):
    """An industry was added to the catalogue."""

    event_type: ClassVar[str] = "genesis.industry.defined"
    entity_type: ClassVar[str] = "industry"
    entity_field: ClassVar[str] = "industry_id"

    industry_id: Annotated[UUID, Meta(description="The new industry.")]
    occurred_at: OccurredAt
    name: DisplayName
    description: EntityDescription
    external_id: ExternalId | None = None


class TeamFormed(Event, frozen=True, kw_only=True):
    """Agents were put together as a team."""

    event_type: ClassVar[str] = "genesis.team.formed"
    entity_type: ClassVar[str] = "team"
    entity_field: ClassVar[str] = "team_id"

    team_id: Annotated[UUID, Meta(description="The new team.")]
    occurred_at: OccurredAt
    name: DisplayName
    description: EntityDescription
    job_role_id: JobRoleId | None = None
    industry_id: IndustryId | None = None
    member_ids: MemberIds


class EntityAmended(Event, frozen=True, kw_only=True):
    """An entity's data was corrected; carries its full state afterwards."""

    event_type: ClassVar[str] = "genesis.entity.amended"
    entity_field: ClassVar[str] = "entity_id"

    entity_id: Annotated[UUID, Meta(description="The entity that was corrected.")]
    occurred_at: OccurredAt
    entity_type: Annotated[EntityType, Meta(description="Which kind of entity it is, and which state is set.")]
    agent: AgentState | None = None
    skill: SkillState | None = None
    job_role: JobRoleState | None = None
    industry: IndustryState | None = None
    team: TeamState | None = None

    def __post_init__(self) -> None:
        require_one_state(self)


class EntityRetired(Event, frozen=True, kw_only=True):
    """An entity is no longer in use; carries its last full state."""

    event_type: ClassVar[str] = "genesis.entity.retired"
    entity_field: ClassVar[str] = "entity_id"

    entity_id: Annotated[UUID, Meta(description="The entity that is no longer in use.")]
    occurred_at: OccurredAt
    entity_type: Annotated[EntityType, Meta(description="Which kind of entity it is, and which state is set.")]
    agent: AgentState | None = None
    skill: SkillState | None = None
    job_role: JobRoleState | None = None
    industry: IndustryState | None = None
    team: TeamState | None = None

    def __post_init__(self) -> None:
        require_one_state(self)


def require_one_state(event: EntityAmended | EntityRetired) -> None:
    """Exactly one state is set: the one that `entity_type` names; otherwise ValueError."""
    for field in STATE_FIELDS:
        if (getattr(event, field) is not None) != (field == event.entity_type):
            verb = "must be set" if field == event.entity_type else "must not be set"
            raise ValueError(f"{field} {verb} when entity_type is {event.entity_type}")


class OperationRecorded(Event, frozen=True, kw_only=True):
    """An operator action; recorded before it takes effect."""

    event_type: ClassVar[str] = "plant.operation.recorded"
    topic: ClassVar[str] = "plant.operations"
    entity_type: ClassVar[str] = "operation"
    entity_field: ClassVar[str] = "operation_id"

    operation_id: Annotated[UUID, Meta(description="The operator action.")]
    occurred_at: OccurredAt
    actor: Annotated[ShortStateText, Meta(description="Who acted: an account, not a person's name.")]
    action: Annotated[ShortStateText, Meta(description="What was done, such as `keys.add`.")]
    target: Annotated[ShortStateText, Meta(description="What it was done to.")]
    reason: Annotated[Reason, Meta(description="Why it was done.")]


EVENT_TYPES: dict[str, type[Event]] = {
    event.event_type: event
    for event in (
        AgentOnboarded,
        AgentAvailable,
        AgentRated,
        SkillValidated,
        SkillRegistered,
        JobRoleDefined,
        IndustryDefined,
        TeamFormed,
        EntityAmended,
        EntityRetired,
        OperationRecorded,
    )
}
"""Event type to its struct."""
