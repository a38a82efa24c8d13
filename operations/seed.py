"""Seed data: ESCO's skills as Skill entities and its occupations as JobRole entities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from database.connector import Database
from entities.entity import Entity
from entities.job_role import JobRole
from entities.skill import Skill
from entities.store import Written, put
from operations.demo.catalogue import catalogue

BATCH: Final = 100
"""Entities of one transaction."""


def esco(governance_agent_id: str) -> list[Entity]:
    """The catalogue's entities: skills first, in its files' order. Ids and external ids are ESCO's own."""
    found = catalogue()
    skills: list[Entity] = [
        Skill(
            id=skill.id,
            external_id=skill.uri,
            name=skill.name,
            description=skill.description,
            category=skill.category,
            tags=["esco"],
            governance_agent_id=governance_agent_id,
        )
        for skill in found.skills
    ]
    return skills + [
        JobRole(
            id=role.id,
            external_id=role.uri,
            name=role.name,
            description=role.description,
            required_skill_ids=set(role.skill_ids),
            tags=["esco"],
            governance_agent_id=governance_agent_id,
        )
        for role in found.job_roles
    ]


async def seed(database: Database, entities: Sequence[Entity], advance: Callable[[int], None]) -> Written:
    """Write entities of one governance boundary, a transaction a batch; what is there and equal stays untouched.

    Interrupted, it can be run again. `advance` is told how many more entities are done.
    """
    total = Written()
    for start in range(0, len(entities), BATCH):
        batch = entities[start : start + BATCH]
        total |= await database.run(partial(put, entities=batch), batch[0].governance_agent_id)
        advance(len(batch))
    return total
