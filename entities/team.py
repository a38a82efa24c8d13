"""Teams, and their members."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Index, text
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, relationship

from entities.entity import Entity
from entities.mapping import Identity, LongText, Name, Row, Tenant, length, of_entity
from entities.vocabulary import NAME_MAX_CHARACTERS, TEXT_MAX_CHARACTERS


class TeamMember(Row):
    """An agent is in a team; the agent may not be known yet."""

    __tablename__ = "team_members"

    team_id: Mapped[Identity]
    agent_id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]

    __table_args__ = (of_entity("team_id"), Index("team_members_agent", "agent_id"))


def _member(agent_id: UUID) -> TeamMember:
    return TeamMember(agent_id=agent_id)


class Team(Entity):
    """Agents who work together, for a job role, in an industry."""

    __tablename__ = "teams"
    id_lists = {"member_ids": "member_links"}

    id: Mapped[Identity]
    governance_agent_id: Mapped[Tenant]
    name: Mapped[Name]
    description: Mapped[LongText]
    job_role_id: Mapped[UUID | None]
    industry_id: Mapped[UUID | None]

    member_links: Mapped[set[TeamMember]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", passive_deletes=True
    )
    member_ids: AssociationProxy[set[UUID]] = association_proxy("member_links", "agent_id", creator=_member)
    """Ids of the agents in it; a set."""

    __table_args__ = (
        length("name", NAME_MAX_CHARACTERS, shortest=1),
        length("description", TEXT_MAX_CHARACTERS),
        of_entity(),
        Index("teams_name", "governance_agent_id", text("lower(name)")),
        Index("teams_job_role", "job_role_id", postgresql_where=text("job_role_id IS NOT NULL")),
        Index("teams_industry", "industry_id", postgresql_where=text("industry_id IS NOT NULL")),
    )
    __mapper_args__ = {"polymorphic_identity": "team"}
