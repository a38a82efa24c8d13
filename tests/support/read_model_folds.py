"""The oracle of the read models: the rows that events make, one event after another, in plain Python.

A fold gives each table's rows as Postgres's `to_json` writes them, in the order of the primary key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from entities.vocabulary import DEFAULT_TENANT
from schemas.events import (
    AgentAvailable,
    AgentOnboarded,
    AgentRated,
    EntityAmended,
    EntityRetired,
    Event,
    IndustryDefined,
    JobRoleDefined,
    SkillRegistered,
    SkillValidated,
)
from tests.support.registry_fold import registry_of

Row = dict[str, Any]
Tables = dict[str, list[Row]]

NO_SKILL = UUID(int=0)
AGENT_PROFILE = ("name", "industry_id", "job_role_id", "team_id", "skill_ids")
SKILL_CATALOGUE = ("name", "description", "category", "external_id")


class Applied(NamedTuple):
    """An applied event, and where its record is."""

    partition: int
    offset: int
    event: Event


def agents(records: Iterable[Applied]) -> Tables:
    """Fold the read model `agents`."""
    rows: dict[UUID, Row] = {}
    for _, offset, event in records:
        profile: Any = None
        available: bool | None = None
        match event:
            case AgentOnboarded():
                profile, status = event, "onboarded"
            case EntityAmended(agent=agent) if agent is not None:
                profile, status, available = agent, agent.status, agent.available
            case EntityRetired(agent=agent) if agent is not None:
                profile, status, available = agent, "retired", False
            case AgentAvailable():
                available = event.available
            case _:
                continue
        row = rows.setdefault(event.entity_id, _empty_agent(event.entity_id))
        if profile is not None:
            row |= {column: getattr(profile, column) for column in AGENT_PROFILE}
            row |= {"status": status, "profile_offset": offset, "profile_changed_at": event.occurred_at}
        if available is not None:
            since = event.available_from if isinstance(event, AgentAvailable) else None
            row |= {"available": available, "available_from": since}
            row |= {"availability_offset": offset, "availability_changed_at": event.occurred_at}
    return {"agents": _rows(rows)}


def _empty_agent(agent_id: UUID) -> Row:
    unknown = (*AGENT_PROFILE, "status", "profile_offset", "profile_changed_at", "available", "available_from",
               "availability_offset", "availability_changed_at")  # fmt: skip
    return {"agent_id": agent_id, **dict.fromkeys(unknown), "skill_ids": ()}


def skills(records: Iterable[Applied]) -> Tables:
    """Fold the read model `skills`."""
    rows: dict[UUID, Row] = {}
    validations: dict[tuple[UUID, UUID], Row] = {}
    for _, offset, event in records:
        match event:
            case SkillRegistered():
                state, status = event, "registered"
            case EntityAmended(skill=state) if state is not None:
                status = "registered"
            case EntityRetired(skill=state) if state is not None:
                status = "retired"
            case SkillValidated():
                state = None
            case _:
                continue
        row = rows.setdefault(event.entity_id, _empty_skill(event.entity_id))
        if state is not None:
            row |= {column: getattr(state, column) for column in SKILL_CATALOGUE}
            row |= {"status": status, "catalogue_offset": offset, "catalogue_changed_at": event.occurred_at}
        elif isinstance(event, SkillValidated):
            validation = {"validator_id": event.validator_id, "score": event.score}
            validation |= {"validated_at": event.occurred_at, "validation_offset": offset}
            if event.agent_id is None:
                row |= validation
            else:
                key = {"skill_id": event.skill_id, "agent_id": event.agent_id}
                validations[event.skill_id, event.agent_id] = key | validation
    return {"skills": _rows(rows), "skill_validations": _rows(validations)}


def _empty_skill(skill_id: UUID) -> Row:
    unknown = (*SKILL_CATALOGUE, "status", "catalogue_offset", "catalogue_changed_at", "validator_id", "score",
               "validated_at", "validation_offset")  # fmt: skip
    return {"skill_id": skill_id, **dict.fromkeys(unknown)}


def ratings(records: Iterable[Applied]) -> Tables:
    """Fold the read model `ratings`."""
    days: dict[tuple[UUID, UUID, date], Counter[int]] = {}
    totals: dict[int, Counter[int]] = {}
    for partition, _, event in records:
        if isinstance(event, AgentRated):
            skill_id = NO_SKILL if event.skill_id is None else event.skill_id
            day = event.occurred_at.astimezone(UTC).date()
            days.setdefault((event.agent_id, skill_id, day), Counter())[event.rating] += 1
            totals.setdefault(partition, Counter())[event.rating] += 1
    rows = {
        key: dict(zip(("agent_id", "skill_id", "day"), key, strict=True))
        | _sums(counts)
        | {f"rated_{rating}": counts[rating] for rating in range(1, 6)}
        for key, counts in days.items()
    }
    return {
        "ratings": _rows(rows),
        "rating_totals": _rows({key: {"partition": key} | _sums(counts) for key, counts in totals.items()}),
    }


def _sums(counts: Counter[int]) -> Row:
    return {"ratings": counts.total(), "rating_sum": sum(rating * count for rating, count in counts.items())}


def activity(records: Iterable[Applied]) -> Tables:
    """Fold the read model `activity`."""
    counts: Counter[tuple[datetime, str, int]] = Counter()
    for partition, _, event in records:
        hour = event.occurred_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        counts[hour, event.event_type, partition] += 1
    names = ("hour", "event_type", "partition", "events")
    return {"activity": _rows({key: dict(zip(names, (*key, count), strict=True)) for key, count in counts.items()})}


def marketplace(records: Iterable[Applied]) -> Tables:
    """Fold the read model `marketplace`."""
    profiles: dict[UUID, Row] = {}
    standings: dict[UUID, Row] = {}
    entries: dict[tuple[str, UUID], Row] = {}
    totals: dict[int, Counter[int]] = {}
    for partition, offset, event in records:
        if (profile := _hired_profile(event)) is not None:
            profiles[event.entity_id] = {"agent_id": event.entity_id, **profile, "profile_offset": offset}
        if (availability := _hired_availability(event)) is not None:
            standing = standings.setdefault(event.entity_id, _empty_standing(event.entity_id))
            standing |= availability | {"availability_offset": offset}
        if isinstance(event, AgentRated):
            standing = standings.setdefault(event.agent_id, _empty_standing(event.agent_id))
            standing |= {"ratings": standing["ratings"] + 1, "rating_sum": standing["rating_sum"] + event.rating}
            totals.setdefault(partition, Counter())[event.rating] += 1
        if (entry := _catalogue_entry(event)) is not None:
            key = (entry["kind"], event.entity_id)
            entries[key] = entry | {"catalogue_offset": offset}
    skills = {(skill_id, agent_id) for agent_id, row in profiles.items() for skill_id in row["skill_ids"]}
    words = {(word, *key) for key, entry in entries.items() for word in entry["words"]}
    return {
        "marketplace_agents": _rows(profiles),
        "marketplace_agent_skills": _rows(_of_keys(("skill_id", "agent_id"), skills)),
        "marketplace_standings": _rows(standings),
        "marketplace_totals": _rows({key: {"partition": key} | _sums(counts) for key, counts in totals.items()}),
        "marketplace_catalogue": _rows(entries),
        "marketplace_words": _rows(_of_keys(("word", "kind", "entity_id"), words)),
    }


def _of_keys(names: Sequence[str], keys: Iterable[tuple[Any, ...]]) -> dict[Any, Row]:
    """Return rows that are their key and nothing else."""
    return {key: dict(zip(names, key, strict=True)) for key in keys}


def _hired_profile(event: Event) -> Row | None:
    match event:
        case AgentOnboarded():
            profile, status = event, "onboarded"
        case EntityAmended(agent=profile) if profile is not None:
            status = profile.status
        case EntityRetired(agent=profile) if profile is not None:
            status = "retired"
        case _:
            return None
    columns = ("name", "industry_id", "job_role_id", "skill_ids")
    return {column: getattr(profile, column) for column in columns} | {"status": status}


def _hired_availability(event: Event) -> Row | None:
    match event:
        case AgentAvailable():
            return {"available": event.available, "available_from": event.available_from}
        case EntityAmended(agent=agent) if agent is not None:
            return {"available": agent.available, "available_from": None}
        case EntityRetired(agent=agent) if agent is not None:
            return {"available": False, "available_from": None}
    return None


def _empty_standing(agent_id: UUID) -> Row:
    unknown = dict.fromkeys(("available", "available_from", "availability_offset"))
    return {"agent_id": agent_id, **unknown, "ratings": 0, "rating_sum": 0}


def _catalogue_entry(event: Event) -> Row | None:
    match event:
        case SkillRegistered() | JobRoleDefined() | IndustryDefined():
            state: Any = event
        case EntityAmended() | EntityRetired():
            state = event.skill or event.job_role or event.industry
        case _:
            return None
    if state is None:
        return None
    words = tuple(sorted(set(re.findall(r"\w+", f"{state.name} {state.description}".lower()))))
    return {
        "kind": event.entity_type, "entity_id": event.entity_id, "name": state.name, "description": state.description,
        "words": words, "retired": isinstance(event, EntityRetired),
    }  # fmt: skip


def registry(records: Iterable[Applied]) -> Tables:
    """Fold the read model `registry`: its own table. The entities are in :func:`entities`."""
    return {"registry_clashes": _rows(registry_of(records).clashes)}


def entities(records: Iterable[Applied]) -> list[Row]:
    """Return the entities that the read model `registry` makes, by id, with their states as versions hold them."""
    made = registry_of(records)
    return [
        {
            "id": str(entity_id), "entity_type": made.kinds[entity_id], "versions": made.versions[entity_id],
            "governance_agent_id": DEFAULT_TENANT,
            "state": {name: _json(value) for name, value in made.states[entity_id].items()},
        }
        for entity_id in sorted(made.states)
    ]  # fmt: skip


FOLDS: Mapping[str, Callable[[Iterable[Applied]], Tables]] = {
    "agents": agents,
    "skills": skills,
    "ratings": ratings,
    "activity": activity,
    "marketplace": marketplace,
    "registry": registry,
}
"""The fold of each read model by its name."""


def _rows(rows: Mapping[Any, Row]) -> list[Row]:
    """Return rows in the order of their keys, their values as in JSON, with the tenant that all of them have."""
    return [
        {name: _json(value) for name, value in rows[key].items()} | {"governance_agent_id": DEFAULT_TENANT}
        for key in sorted(rows)
    ]


def _json(value: Any) -> Any:
    """Return a value as Postgres writes it in JSON, in the time zone UTC."""
    match value:
        case UUID():
            return str(value)
        case datetime():
            text = value.astimezone(UTC).isoformat(timespec="microseconds")
            return re.sub(r"\.?0*\+", "+", text)
        case date():
            return value.isoformat()
        case tuple() | list():
            return [_json(each) for each in value]
        case _:
            return value
