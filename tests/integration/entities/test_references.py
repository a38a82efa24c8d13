"""`entities.references.check_entities`: every reference that a kind has is followed."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from entities.agent import Agent
from entities.entity import Entity
from entities.industry import Industry
from entities.job_role import JobRole
from entities.store import put
from entities.team import Team
from tests.conftest import Database as MigratedDatabase
from tests.support.connectors import connected
from tests.support.version_chains import findings

OWN, OTHER = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: Agent(id=OWN, name="one", job_role_id=OTHER), "job_role"),
        (lambda: Agent(id=OWN, name="one", team_id=OTHER), "team"),
        (lambda: Agent(id=OWN, name="one", industry_id=OTHER), "industry"),
        (lambda: Agent(id=OWN, name="one", skill_ids={OTHER}), "skill"),
        (lambda: JobRole(id=OWN, name="one", description="x", industry_id=OTHER), "industry"),
        (lambda: JobRole(id=OWN, name="one", description="x", required_skill_ids={OTHER}), "skill"),
        (lambda: Team(id=OWN, name="one", description="x", job_role_id=OTHER), "job_role"),
        (lambda: Team(id=OWN, name="one", description="x", industry_id=OTHER), "industry"),
        (lambda: Team(id=OWN, name="one", description="x", member_ids={OTHER}), "agent"),
        (lambda: Industry(id=OWN, name="one", description="x", parent_id=OTHER), "parent"),
    ],
)
async def test_each_reference_is_followed(database: MigratedDatabase, make: Callable[[], Entity], wanted: str) -> None:
    """An entity that refers to nothing known is reported with the kind that it wants."""
    entity = make()
    async with connected(database.writer_url) as connector, connector.transaction("genesis") as connection:
        await put(connection, [entity])
    (fault,) = await findings(database.api_url)
    assert fault.finding == ("missing" if wanted == "parent" else "stub")
    assert (fault.entity_type, fault.entity_id) == (entity.entity_type, OWN)
    assert fault.detail == f"refers to {wanted} {OTHER}"
