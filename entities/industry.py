"""Industries."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from entities.entity import Entity
from entities.mapping import Identity, LongText, Name, Tenant, length, of_entity
from entities.vocabulary import EMBEDDING_DIMENSIONS, NAME_MAX_CHARACTERS, TEXT_MAX_CHARACTERS


class Industry(Entity):
    """A branch of trade that agents, teams and job roles belong to."""

    __tablename__ = "industries"

    id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]
    name: Mapped[Name]
    description: Mapped[LongText]
    embedding: Mapped[Any] = mapped_column(VECTOR(EMBEDDING_DIMENSIONS), nullable=True, deferred=True)
    """384 floats, or None until it is computed. Not loaded unless asked for."""

    __table_args__ = (
        length("name", NAME_MAX_CHARACTERS, shortest=1),
        length("description", TEXT_MAX_CHARACTERS),
        of_entity(),
        Index("industries_name", "governance_agent_id", text("lower(name)")),
        Index(
            "industries_embedding",
            "embedding",
            postgresql_using="hnsw",
            postgresql_ops={"embedding": "vector_cosine_ops"},
        ),
    )
    __mapper_args__ = {"polymorphic_identity": "industry"}
