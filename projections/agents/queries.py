"""Queries on the read model `agents`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT

_BY_ID: Final = text("""
    SELECT agent_id, name, job_role_id, skill_ids, status, available, available_from
    FROM read_models.agents WHERE agent_id = ANY(CAST(:ids AS uuid[])) ORDER BY name
""")


async def agents(database: Database, ids: Sequence[UUID]) -> list[Any]:
    """Return the rows of these agents, by name."""
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_BY_ID, {"ids": list(ids)})).all())
