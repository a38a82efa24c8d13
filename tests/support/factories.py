"""Makes valid entities for tests, written at once: `await make_skill(connection, name="Weaving")`.

Every field has a default, drawn from a seed: the first skill of a test run is the same in every run. With `linked=True`
what an entity refers to is made too, in its tenant; else it refers to nothing. Into a session an entity goes by
`flush`, into a connection by `entities.store.put`; both leave the commit to the caller.
"""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from entities.agent import Agent
from entities.entity import Entity
from entities.industry import Industry
from entities.job_role import JobRole
from entities.skill import Skill
from entities.store import put
from entities.team import Team
from entities.vocabulary import DEFAULT_TENANT, EMBEDDING_DIMENSIONS, SENIORITIES, SKILL_CATEGORIES

Into = AsyncConnection | AsyncSession
Made = TypeVar("Made", bound=Entity)

SEED = 20_260_101
_NUMBERS = count(1)


class Draw:
    """Values of one entity's fields: of the same number, always the same."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.random = Random(SEED + number)

    def id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def name(self, kind: str) -> str:
        adjective = self.random.choice(("Quiet", "Careful", "Distributed", "Northern", "Applied"))
        return f"{adjective} {kind} {self.number}"

    def description(self) -> str:
        what = self.random.choice(("Keeps records in order", "Moves archives", "Measures what others make"))
        return f"{what}, in way {self.number}."


def seeded_embedding(number: int) -> list[float]:
    """A direction of no meaning: the same of the same number."""
    random = Random(SEED + number)
    return [random.gauss(0, 1) for _ in range(EMBEDDING_DIMENSIONS)]


async def make_skill(into: Into, **fields: Any) -> Skill:
    """A skill, by default without an embedding."""
    draw = Draw(next(_NUMBERS))
    defaults = {"category": draw.random.choice(SKILL_CATEGORIES), "description": draw.description()}
    return await _written(into, Skill(**{"id": draw.id(), "name": draw.name("skill"), **defaults, **fields}))


async def make_industry(into: Into, **fields: Any) -> Industry:
    """An industry, by default without an embedding."""
    draw = Draw(next(_NUMBERS))
    defaults = {"name": draw.name("industry"), "description": draw.description()}
    return await _written(into, Industry(**{"id": draw.id(), **defaults, **fields}))


async def make_job_role(into: Into, *, linked: bool = False, **fields: Any) -> JobRole:
    """A job role; linked, it asks for two skills and is of an industry."""
    draw = Draw(next(_NUMBERS))
    defaults = {"name": draw.name("job role"), "description": draw.description()}
    defaults["seniority"] = draw.random.choice(SENIORITIES)
    if linked:
        where = _tenant(fields)
        fields.setdefault("industry_id", (await make_industry(into, **where)).id)
        fields.setdefault("required_skill_ids", {(await make_skill(into, **where)).id for _ in range(2)})
    return await _written(into, JobRole(**{"id": draw.id(), **defaults, **fields}))


async def make_team(into: Into, *, linked: bool = False, **fields: Any) -> Team:
    """A team; linked, it has two agents, a job role and an industry."""
    draw = Draw(next(_NUMBERS))
    defaults = {"name": draw.name("team"), "description": draw.description()}
    if linked:
        where = _tenant(fields)
        fields.setdefault("industry_id", (await make_industry(into, **where)).id)
        fields.setdefault("job_role_id", (await make_job_role(into, **where)).id)
        fields.setdefault("member_ids", {(await make_agent(into, **where)).id for _ in range(2)})
    return await _written(into, Team(**{"id": draw.id(), **defaults, **fields}))


async def make_agent(into: Into, *, linked: bool = False, **fields: Any) -> Agent:
    """An agent; linked, it has two skills, a job role, a team and an industry. Its team does not list it."""
    draw = Draw(next(_NUMBERS))
    defaults = {"name": draw.name("agent"), "available": draw.random.random() < 0.5}
    if linked:
        where = _tenant(fields)
        fields.setdefault("industry_id", (await make_industry(into, **where)).id)
        fields.setdefault("job_role_id", (await make_job_role(into, **where)).id)
        fields.setdefault("team_id", (await make_team(into, **where)).id)
        fields.setdefault("skill_ids", {(await make_skill(into, **where)).id for _ in range(2)})
    return await _written(into, Agent(**{"id": draw.id(), **defaults, **fields}))


def _tenant(fields: dict[str, Any]) -> dict[str, Any]:
    return {"governance_agent_id": fields.get("governance_agent_id", DEFAULT_TENANT)}


async def _written(into: Into, entity: Made) -> Made:
    if isinstance(into, AsyncSession):
        into.add(entity)
        await into.flush()
    else:
        await put(into, [entity])
    return entity
