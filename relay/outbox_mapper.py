"""The outbox mapper: from a row to its event, `genesis.entity.amended` or `.retired`, with the entity's state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from schemas.entity_states import AgentState, IndustryState, JobRoleState, SkillState, TeamState
from schemas.events import EntityAmended, EntityRetired
from streams.errors import UnmappableRow

State = AgentState | SkillState | JobRoleState | IndustryState | TeamState

ENTITY_STATES: Final[Mapping[str, type[State]]] = {
    "agent": AgentState,
    "skill": SkillState,
    "job_role": JobRoleState,
    "industry": IndustryState,
    "team": TeamState,
}
"""Entity type to the struct of its full state."""

OUTBOX_EVENT_TYPES: Final[Mapping[str, type[EntityAmended] | type[EntityRetired]]] = {
    event.event_type: event for event in (EntityAmended, EntityRetired)
}

_WITHOUT_VALUES: Final = ("Expected `", "Object missing required field `", "Invalid UUID")
"""Beginnings of messages of msgspec that hold names and types of ours; others may hold the value itself."""


class OutboxRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the outbox that has not been sent."""

    id: int
    """It grows with each change of an entity."""
    event_id: UUID
    """The same however often the row is published."""
    event_type: str
    entity_id: UUID
    entity_type: str
    tenant: str | None = None
    """Tenant of the entity; None where the row is older than the column."""
    version: int = 1
    """The entity's version that the change made."""
    occurred_at: datetime
    """Just before the change was committed, by the database's clock."""
    state: str
    """JSON, as the database's `entity_state` makes it; more than an event carries."""
    problem: str | None = None
    """Why no event could be made of it."""


def event_of(row: OutboxRow) -> EntityAmended | EntityRetired:
    """Return the event of a row. Raises UnmappableRow with a reason that names fields and never a value."""
    kind = OUTBOX_EVENT_TYPES.get(row.event_type)
    if kind is None:
        raise UnmappableRow("event_type: neither genesis.entity.amended nor genesis.entity.retired")
    state_type = ENTITY_STATES.get(row.entity_type)
    if state_type is None:
        raise UnmappableRow(f"entity_type: not one of {', '.join(ENTITY_STATES)}")
    try:
        stored = msgspec.json.decode(row.state, type=dict[str, object])
        state = msgspec.convert(
            {name: stored[name] for name in state_type.__struct_fields__ if name in stored}, state_type
        )
    except msgspec.ValidationError as error:
        raise UnmappableRow(without_values(str(error), row.entity_type)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnmappableRow("state: not an object in JSON, or one that is nested too deeply") from error
    return kind(
        event_id=row.event_id,
        entity_id=row.entity_id,
        occurred_at=row.occurred_at,
        entity_type=row.entity_type,  # type: ignore[arg-type]  # a key of STATES, which are the literal's values
        **{row.entity_type: state},  # type: ignore[arg-type]  # the one field of that name
    )


def without_values(message: str, under: str = "") -> str:
    """Return a message of msgspec as `field: problem`, without the wrong value.

    >>> without_values("Expected `array` of length <= 1000 - at `$.skill_ids`", "agent")
    'agent.skill_ids: Expected `array` of length <= 1000'
    >>> without_values("Invalid enum value 'Ada Lovelace' - at `$.category`", "skill")
    'skill.category: not a value it may have'
    """
    wrong, _, path = message.rpartition(" - at `$")
    field = under + path.removesuffix("`") if wrong else under
    text = wrong or message
    if not text.startswith(_WITHOUT_VALUES):
        text = "not a value it may have"
    return f"{field.removeprefix('.')}: {text}" if field else text
