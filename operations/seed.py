"""Seed data: ESCO's skills as Skill entities and its occupations as JobRole entities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sqlalchemy import text

from database.connector import Database
from database.statistics import refresh_statement
from entities.entity import Entity
from entities.job_role import JobRole
from entities.mapping import Row
from entities.skill import Skill
from entities.store import Written, put
from entities.versions import EntityVersion
from operations.demo.catalogue import catalogue

BATCH: Final = 100
"""Entities of one transaction."""


def esco(governance_agent_id: str) -> list[Entity]:
    """Return the catalogue's entities: skills first, in its files' order. Ids and external ids are ESCO's own."""
    esco_catalogue = catalogue()
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
        for skill in esco_catalogue.skills
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
        for role in esco_catalogue.job_roles
    ]


async def seed(database: Database, entities: Sequence[Entity], advance: Callable[[int], None]) -> Written:
    """Write entities of one tenant, each batch in a transaction; equal ones stay untouched.

    Interrupted, it can be run again. `advance` takes the number of entities that were done since the last call. At the
    end the tables are analysed: the first queries come before autovacuum does.
    """
    total = Written()
    for start in range(0, len(entities), BATCH):
        batch = entities[start : start + BATCH]
        total |= await database.run(partial(put, entities=batch), batch[0].governance_agent_id)
        advance(len(batch))
    if total.created or total.changed:
        async with database.transaction() as connection:
            await connection.execute(
                text(refresh_statement(sorted({*Row.metadata.tables, EntityVersion.__tablename__})))
            )
    return total
