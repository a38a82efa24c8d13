"""Queries on the read model `skills`. How long a validation holds is a policy of readers, not of the fold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT

VALIDATION_DAYS: Final = 365
"""How long a validation holds, unless the caller has another policy."""

# No later than the last moment that Python knows.
_EXPIRY: Final = """
    CASE WHEN validated_at IS NOT NULL
         THEN least(validated_at + make_interval(days => :days), '9999-12-31 23:59:59.999999+00') END AS expires_at,
    CASE WHEN validated_at IS NULL THEN 'unvalidated'
         WHEN validated_at + make_interval(days => :days) <= :now THEN 'expired'
         ELSE 'validated' END AS validation
"""

_BY_ID: Final = text(f"""
    SELECT skill_id, name, description, category, external_id, status, validator_id, score, validated_at, {_EXPIRY}
    FROM read_models.skills WHERE skill_id = ANY(CAST(:ids AS uuid[])) ORDER BY name, skill_id
""")  # noqa: S608 (no value in it)

_OF_AN_AGENT: Final = text(f"""
    SELECT skill_id, agent_id, validator_id, score, validated_at, {_EXPIRY}
    FROM read_models.skill_validations
    WHERE skill_id = ANY(CAST(:ids AS uuid[])) AND agent_id = :agent_id ORDER BY skill_id
""")  # noqa: S608 (no value in it)


async def skills(
    database: Database, ids: Sequence[UUID], now: datetime, validation_days: int = VALIDATION_DAYS
) -> list[Any]:
    """Return the rows of these skills, by name.

    `validation` is `unvalidated`, `validated` or `expired` and, like `score`, about the skill as such; `expires_at` is
    null for one that was never validated, and `name` for one that was heard of before it was registered.
    """
    arguments = {"ids": list(ids), "now": now, "days": validation_days}
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_BY_ID, arguments)).all())


async def agent_validations(
    database: Database, agent_id: UUID, skill_ids: Sequence[UUID], now: datetime, validation_days: int = VALIDATION_DAYS
) -> list[Any]:
    """Return the last validation of each of these skills of an agent, by skill; skills without one are left out."""
    arguments = {"ids": list(skill_ids), "agent_id": agent_id, "now": now, "days": validation_days}
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_OF_AN_AGENT, arguments)).all())
