"""Job roles, and the skills they ask for."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Index, text
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, relationship

from entities.entity import Entity
from entities.mapping import Identity, LongText, Name, Row, Tenant, Token, length, of_entity, one_of
from entities.vocabulary import NAME_MAX_CHARACTERS, SENIORITIES, TEXT_MAX_CHARACTERS


class JobRoleSkill(Row):
    """A job role asks for a skill, which may not be known yet."""

    __tablename__ = "job_role_skills"

    job_role_id: Mapped[Identity]
    skill_id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]

    __table_args__ = (of_entity("job_role_id"), Index("job_role_skills_skill", "skill_id"))


def _asked_for(skill_id: UUID) -> JobRoleSkill:
    return JobRoleSkill(skill_id=skill_id)


class JobRole(Entity):
    """Work of one kind: the skills it asks for, how senior it is, and its industry."""

    __tablename__ = "job_roles"
    id_lists = {"required_skill_ids": "skill_links"}

    id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]
    name: Mapped[Name]
    description: Mapped[LongText]
    seniority: Mapped[Token | None]
    industry_id: Mapped[UUID | None]

    skill_links: Mapped[set[JobRoleSkill]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", passive_deletes=True
    )
    required_skill_ids: AssociationProxy[set[UUID]] = association_proxy("skill_links", "skill_id", creator=_asked_for)
    """Ids of the skills that it asks for; a set."""

    __table_args__ = (
        length("name", NAME_MAX_CHARACTERS, shortest=1),
        length("description", TEXT_MAX_CHARACTERS),
        one_of("seniority", SENIORITIES),
        of_entity(),
        Index("job_roles_name", "governance_agent_id", text("lower(name)")),
        Index("job_roles_industry", "industry_id", postgresql_where=text("industry_id IS NOT NULL")),
    )
    __mapper_args__ = {"polymorphic_identity": "job_role"}
