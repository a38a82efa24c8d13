"""Queries on the read model `agents`, and what readers of the API may ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT
from projections.listing import Listing, ListingColumn, ListingFilter

_BY_ID: Final = text("""
    SELECT agent_id, name, job_role_id, skill_ids, status, available, available_from
    FROM read_models.agents WHERE agent_id = ANY(CAST(:ids AS uuid[])) ORDER BY name
""")

AGENTS: Final = Listing(
    model="agents",
    source="read_models.agents",
    key=("agent_id",),
    columns=(
        ListingColumn("agent_id", "uuid", "The agent.", nullable=False),
        ListingColumn("name", "text", "Its name; null for one that was heard of before it was onboarded."),
        ListingColumn("industry_id", "uuid", "Its industry, if any."),
        ListingColumn("job_role_id", "uuid", "Its job role, if any."),
        ListingColumn("team_id", "uuid", "Its team, if any."),
        ListingColumn("skill_ids", "uuids", "Its skills.", nullable=False),
        ListingColumn("status", "text", "`onboarded`, or what an amendment has made of it."),
        ListingColumn("profile_changed_at", "time", "When its profile changed last, by the producer's clock."),
        ListingColumn("available", "boolean", "Whether it takes work; null where nobody has said so."),
        ListingColumn("available_from", "time", "When it will take work, where that is known."),
        ListingColumn("availability_changed_at", "time", "When that changed last, by the producer's clock."),
    ),
    filters=(
        ListingFilter("status", "text", "status = {}", "Agents in this status."),
        ListingFilter("available", "boolean", "available = {}", "Agents that take work, or that do not."),
        ListingFilter("industry", "uuid", "industry_id = {}", "Agents of this industry."),
        ListingFilter("job-role", "uuid", "job_role_id = {}", "Agents of this job role."),
        ListingFilter("team", "uuid", "team_id = {}", "Agents of this team."),
        ListingFilter("skill", "uuid", "skill_ids @> ARRAY[{}]", "Agents that have this skill."),
    ),
)


async def agents(database: Database, ids: Sequence[UUID]) -> list[Any]:
    """Return the rows of these agents, by name."""
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_BY_ID, {"ids": list(ids)})).all())
