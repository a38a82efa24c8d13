"""The oracle of the read model `registry`: the entities that events make, one event after another, in plain Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from schemas.events import (
    AgentAvailable,
    AgentOnboarded,
    EntityAmended,
    EntityRetired,
    Event,
    IndustryDefined,
    JobRoleDefined,
    SkillRegistered,
    TeamFormed,
)

Row = dict[str, Any]

LISTS = {"agent": "skill_ids", "job_role": "required_skill_ids", "team": "member_ids"}
FIELDS = {
    "agent": ("name", "industry_id", "job_role_id", "team_id"),
    "skill": ("name", "description", "category", "external_id"),
    "job_role": ("name", "description", "seniority", "industry_id", "external_id"),
    "industry": ("name", "description", "external_id"),
    "team": ("name", "description", "job_role_id", "industry_id"),
}
UNTOUCHED: Row = {
    "external_id": None, "deleted_at": None, "amendment_history": [], "evolution_markers": {},
    "l0_compliance_status": {}, "amendment_alignment": "unknown", "drift_detector": {}, "tags": [],
    "custom_attributes": {}, "governance_notes": "", "parent_id": None,
}  # fmt: skip


class Registry:
    """Entities by id, with their states and how many versions they have had; and the ids with events left out."""

    def __init__(self) -> None:
        self.states: dict[UUID, Row] = {}
        self.kinds: dict[UUID, str] = {}
        self.versions: dict[UUID, int] = {}
        self.clashes: dict[UUID, Row] = {}

    def apply(self, offset: int, event: Event) -> None:
        """Fold an event."""
        match event:
            case AgentOnboarded() | SkillRegistered() | JobRoleDefined() | IndustryDefined() | TeamFormed():
                reason = self._describe(event, event)
            case EntityAmended() | EntityRetired():
                reason = self._describe(event, getattr(event, event.entity_type))
            case AgentAvailable():
                reason = self._let_work(event)
            case _:
                return
        if reason:
            row = self.clashes.setdefault(event.entity_id, {"entity_id": event.entity_id, "events": 0})
            row["events"] += 1
            row |= {"last_offset": offset, "last_event_type": event.event_type, "last_reason": reason}

    def _let_work(self, event: AgentAvailable) -> str:
        if self.kinds.get(event.agent_id, "agent") != "agent":
            return "its id is that of an entity of another kind"
        if event.agent_id not in self.states:
            return "its agent was not onboarded"
        self._write(event.agent_id, self.states[event.agent_id] | {"available": event.available})
        return ""

    def _describe(self, event: Event, said: Any) -> str:
        kind, entity_id = event.entity_type, event.entity_id
        if self.kinds.setdefault(entity_id, kind) != kind:
            return "its id is that of an entity of another kind"
        before = self.states.get(entity_id, {**UNTOUCHED, "created_at": event.occurred_at, "available": False})
        state = before | {name: getattr(said, name) for name in FIELDS[kind]}
        if kind in LISTS:
            state[LISTS[kind]] = sorted(set(getattr(said, LISTS[kind])))
        retired = isinstance(event, EntityRetired)
        state |= {"status": "active", "deleted_at": event.occurred_at if retired else None}
        if kind == "agent":
            if isinstance(event, AgentOnboarded):
                state["status"] = "onboarded"
            else:
                state |= {"status": said.status, "available": said.available and not retired}
        else:
            state.pop("available", None)
        if retired:
            state["status"] = "retired"
        self._write(entity_id, state)
        return ""

    def _write(self, entity_id: UUID, state: Row) -> None:
        if self.states.get(entity_id) != state:
            self.versions[entity_id] = self.versions.get(entity_id, 0) + 1
        self.states[entity_id] = state


def registry_of(records: Iterable[tuple[int, int, Event]]) -> Registry:
    """Return the registry that events make; each comes with its partition and its offset."""
    made = Registry()
    for _, offset, event in records:
        made.apply(offset, event)
    return made
