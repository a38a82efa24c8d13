"""Skills."""

from __future__ import annotations

from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from entities.entity import Entity
from entities.mapping import Identity, LongText, Name, Tenant, Token, length, of_entity, one_of
from entities.vocabulary import EMBEDDING_DIMENSIONS, NAME_MAX_CHARACTERS, SKILL_CATEGORIES, TEXT_MAX_CHARACTERS


class Skill(Entity):
    """Something that can be known or done. Its embedding is computed from its name and description."""

    __tablename__ = "skills"

    id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]
    name: Mapped[Name]
    description: Mapped[LongText]
    category: Mapped[Token]
    embedding: Mapped[Any] = mapped_column(VECTOR(EMBEDDING_DIMENSIONS), nullable=True, deferred=True)
    """384 floats, or None until it is computed. Not loaded unless asked for."""

    __table_args__ = (
        length("name", NAME_MAX_CHARACTERS, shortest=1),
        length("description", TEXT_MAX_CHARACTERS),
        one_of("category", SKILL_CATEGORIES),
        of_entity(),
        Index("skills_name", "governance_agent_id", text("lower(name)")),
        Index(
            "skills_embedding",
            "embedding",
            postgresql_using="hnsw",
            postgresql_ops={"embedding": "vector_cosine_ops"},
        ),
    )
    __mapper_args__ = {"polymorphic_identity": "skill"}
