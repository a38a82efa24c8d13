"""The shared parts of the mapped classes: registry, names of constraints, and column types."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKeyConstraint, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from entities.vocabulary import DEFAULT_TENANT

# The names that Postgres itself makes: the migrations leave them to it.
_NAMES = {
    "pk": "%(table_name)s_pkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}

Token = Annotated[str, mapped_column(Text(collation="C"))]
"""Text that a program compares, in byte order."""
Moment = Annotated[datetime, mapped_column(DateTime(timezone=True))]
JsonObject = Annotated[dict[str, Any], mapped_column(JSONB, default=dict, server_default=text("'{}'"))]
Name = Annotated[str, mapped_column(Text)]
LongText = Annotated[str, mapped_column(Text, default="", server_default="")]
Identity = Annotated[UUID, mapped_column(primary_key=True)]
Tenant = Annotated[str, mapped_column(Text(collation="C"), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT)]


class Row(DeclarativeBase):
    """The root of all mapped classes."""

    metadata = MetaData(naming_convention=_NAMES)


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """Return the constraint of a closed set."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def length(column: str, longest: int, *, shortest: int = 0) -> CheckConstraint:
    """Return the constraint of a text's length in characters."""
    size = f"char_length({column})"
    return CheckConstraint(
        f"{size} BETWEEN {shortest} AND {longest}" if shortest else f"{size} <= {longest}", name=column
    )


def of_hash(column: str) -> CheckConstraint:
    """Return the constraint of a SHA-256."""
    return CheckConstraint(f"octet_length({column}) = 32", name=column)


def of_entity(column: str = "id") -> ForeignKeyConstraint:
    """Return the foreign key of a row that belongs to an entity, has its tenant, and is deleted with it."""
    return ForeignKeyConstraint(
        [column, "governance_agent_id"], ["entities.id", "entities.governance_agent_id"], ondelete="CASCADE"
    )
