"""Queries on the read model `skills`. How long a validation holds is a policy of readers, not of the fold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT
from projections.listing import Listing, ListingColumn, ListingFilter

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

_TYPED_EXPIRY: Final = _EXPIRY.replace(":days", ":validation_days::integer").replace(":now", ":now::timestamptz")

SKILLS: Final = Listing(
    model="skills",
    source=f"(SELECT *, {_TYPED_EXPIRY} FROM read_models.skills) AS skills",  # noqa: S608 (no value in it)
    arguments=("now", "validation_days"),
    key=("skill_id",),
    columns=(
        ListingColumn("skill_id", "uuid", "The skill.", nullable=False),
        ListingColumn("name", "text", "Its name; null for one that was heard of before it was registered."),
        ListingColumn("description", "text", "What it is, in words."),
        ListingColumn("category", "text", "Kind of skill."),
        ListingColumn("external_id", "text", "Its id in another catalogue, if any."),
        ListingColumn("status", "text", "`registered`, or what an amendment has made of it."),
        ListingColumn("validator_id", "uuid", "Who validated it last, as an opaque id."),
        ListingColumn("score", "integer", "Points out of 100 in that validation, of the skill as such."),
        ListingColumn("validated_at", "time", "When that was, by the producer's clock."),
        ListingColumn("expires_at", "time", "Until when it holds, by the reader's policy."),
        ListingColumn("validation", "text", "`unvalidated`, `validated` or `expired`.", nullable=False),
    ),
    filters=(
        ListingFilter("status", "text", "status = {}", "Skills in this status."),
        ListingFilter("category", "text", "category = {}", "Skills of this kind."),
        ListingFilter("external-id", "text", "external_id = {}", "Skills with this id in another catalogue."),
        ListingFilter(
            "validation", "text", "validation = {}", "Skills in this state of validation, now.",
            choices=("unvalidated", "validated", "expired"),
        ),
    ),
)  # fmt: skip


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
