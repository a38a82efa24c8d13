"""Seeded events of every type, about a few entities, so that many of them meet in the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from schemas.entity_states import AgentState, IndustryState, JobRoleState, SkillState, TeamState
from schemas.events import (
    NIL_ID,
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
    TeamFormed,
)

START = datetime(2026, 1, 1, 22, 30, tzinfo=UTC)
EXTREMES = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
CATEGORIES = ("technical", "soft_skill", "domain_expertise")


class MixedEvents:
    """Events of every type of `genesis.events`. Ids are the same few for entities of every kind."""

    def __init__(self, seed: int, entities: int = 4) -> None:
        self._chance = random.Random(seed)
        self._seed = seed
        self._ids = [UUID(int=number) for number in range(entities)]
        self._made = 0
        self._makers: list[Callable[[], Event]] = [
            self._onboarded,
            self._available,
            self._rated,
            self._rated,
            self._validated,
            self._validated,
            self._registered,
            self._amended,
            self._amended,
            self._retired,
            self._of_others,
        ]

    def take(self, count: int) -> list[Event]:
        """Return the next events."""
        return [self._chance.choice(self._makers)() for _ in range(count)]

    def _head(self) -> dict[str, Any]:
        """Fields of every event; times go back and forth over hours and days, and some are the first and the last."""
        self._made += 1
        moment = START + timedelta(microseconds=self._chance.randrange(4 * 3_600 * 1_000_000))
        if self._chance.random() < 0.1:
            moment = self._chance.choice(EXTREMES)
        return {"event_id": UUID(int=self._seed << 64 | self._made), "occurred_at": moment}

    def _id(self) -> UUID:
        return self._chance.choice(self._ids)

    def _some_id(self) -> UUID | None:
        return self._id() if self._chance.random() < 0.6 else None

    def _some_ids(self) -> tuple[UUID, ...]:
        return tuple(self._id() for _ in range(self._chance.randrange(3)))

    def _text(self) -> str:
        return f"'{self._made}' \\ {{}} é"

    def _description(self) -> str:
        return self._text()

    def _available_from(self) -> datetime | None:
        return START if self._chance.random() < 0.5 else None

    def _onboarded(self) -> Event:
        return AgentOnboarded(
            **self._head(), agent_id=self._id(), name=self._text(), industry_id=self._some_id(),
            job_role_id=self._some_id(), team_id=self._some_id(), skill_ids=self._some_ids(),
        )  # fmt: skip

    def _available(self) -> Event:
        since = self._available_from()
        return AgentAvailable(
            **self._head(), agent_id=self._id(), available=self._chance.random() < 0.5, available_from=since
        )

    def _rated(self) -> Event:
        rating = self._chance.randint(1, 5)
        skill_id = NIL_ID if self._chance.random() < 0.1 else self._some_id()
        return AgentRated(**self._head(), agent_id=self._id(), rater_id=self._id(), rating=rating, skill_id=skill_id)

    def _validated(self) -> Event:
        score = self._chance.randint(0, 100)
        return SkillValidated(
            **self._head(), skill_id=self._id(), agent_id=self._some_id(), validator_id=self._id(), score=score
        )

    def _registered(self) -> Event:
        return SkillRegistered(**self._head(), skill_id=self._id(), **self._skill())

    def _skill(self) -> dict[str, Any]:
        category, external = self._chance.choice(CATEGORIES), self._text() if self._chance.random() < 0.5 else None
        return {"name": self._text(), "description": self._description(), "category": category, "external_id": external}

    def _amended(self) -> Event:
        return EntityAmended(**self._head(), entity_id=self._id(), **self._state())

    def _retired(self) -> Event:
        return EntityRetired(**self._head(), entity_id=self._id(), **self._state())

    def _state(self) -> dict[str, Any]:
        """The state of an entity of some kind, agents and skills mostly; the others have the same ids."""
        text = {"name": self._text(), "description": self._description()}
        agent = AgentState(
            name=self._text(), industry_id=self._some_id(), job_role_id=self._some_id(), team_id=self._some_id(),
            skill_ids=self._some_ids(), status="on leave", available=self._chance.random() < 0.5,
        )  # fmt: skip
        states = [
            {"entity_type": "agent", "agent": agent},
            {"entity_type": "skill", "skill": SkillState(**self._skill())},
            {"entity_type": "job_role", "job_role": JobRoleState(**text, required_skill_ids=self._some_ids())},
            {"entity_type": "industry", "industry": IndustryState(**text)},
            {"entity_type": "team", "team": TeamState(**text, member_ids=self._some_ids())},
        ]
        return self._chance.choices(states, (4, 4, 1, 1, 1))[0]

    def _of_others(self) -> Event:
        text = {"name": self._text(), "description": self._description()}
        events: list[Callable[[], Event]] = [
            lambda: JobRoleDefined(**self._head(), job_role_id=self._id(), **text, required_skill_ids=self._some_ids()),
            lambda: IndustryDefined(**self._head(), industry_id=self._id(), **text),
            lambda: TeamFormed(**self._head(), team_id=self._id(), **text, member_ids=self._some_ids()),
        ]
        return self._chance.choice(events)()
