"""Agents, and the skills they have."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Index, text
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from entities.entity import Entity
from entities.mapping import Identity, Name, Row, Tenant, length, of_entity
from entities.vocabulary import NAME_MAX_CHARACTERS


class AgentSkill(Row):
    """An agent has a skill, which may not be known yet."""

    __tablename__ = "agent_skills"

    agent_id: Mapped[Identity]
    skill_id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]

    __table_args__ = (of_entity("agent_id"), Index("agent_skills_skill", "skill_id"))


def _had(skill_id: UUID) -> AgentSkill:
    return AgentSkill(skill_id=skill_id)


class Agent(Entity):
    """A taker of work: its skills, job role, team and industry, and whether it takes work now."""

    __tablename__ = "agents"
    id_lists = {"skill_ids": "skill_links"}

    id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]
    name: Mapped[Name]
    """Name shown to people; never a person's name."""
    job_role_id: Mapped[UUID | None]
    team_id: Mapped[UUID | None]
    industry_id: Mapped[UUID | None]
    available: Mapped[bool] = mapped_column(default=False, server_default=text("false"))

    skill_links: Mapped[set[AgentSkill]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", passive_deletes=True
    )
    skill_ids: AssociationProxy[set[UUID]] = association_proxy("skill_links", "skill_id", creator=_had)
    """Ids of the skills it has; a set."""

    __table_args__ = (
        length("name", NAME_MAX_CHARACTERS, shortest=1),
        of_entity(),
        Index("agents_name", "governance_agent_id", text("lower(name)")),
        Index("agents_job_role", "job_role_id", postgresql_where=text("job_role_id IS NOT NULL")),
        Index("agents_team", "team_id", postgresql_where=text("team_id IS NOT NULL")),
        Index("agents_industry", "industry_id", postgresql_where=text("industry_id IS NOT NULL")),
    )
    __mapper_args__ = {"polymorphic_identity": "agent"}
