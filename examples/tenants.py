"""Write and read entities through Plant's connector, inside a tenant and outside it.

    plant up
    python examples/tenants.py

A transaction names its tenant and sees the rows of that tenant alone; Postgres's policies hold this for any query.
Here `acme` writes a skill and renames it, and others look for it.
"""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from database.connector import Database, connect
from database.errors import RowRefused
from entities.skill import Skill
from runtime.settings import load_settings


async def write(writer: Database) -> UUID:
    """Write one skill of acme; its first version is written as the transaction commits."""
    skill = Skill(
        id=uuid4(),
        name="Soldering",
        description="Joining metal parts with solder.",
        category="technical",
        governance_agent_id="acme",
    )
    async with writer.session("acme") as session:
        session.add(skill)
    return skill.id


async def rename(writer: Database, skill_id: UUID) -> None:
    """Rename it; `run_session` calls the work again after a serialization failure or a deadlock."""

    async def work(session: AsyncSession) -> None:
        skill = await session.get_one(Skill, skill_id)
        skill.name = "Hand soldering"

    await writer.run_session(work, "acme", isolation="REPEATABLE READ")


async def look(reader: Database, tenant: str | None, skill_id: UUID) -> str:
    """Return what a reader of a tenant sees, on the read replica if there is one."""
    async with reader.session(tenant, replica=True) as session:
        name = await session.scalar(select(Skill.name).where(Skill.id == skill_id))
    return name or "nothing"


async def main() -> None:
    settings = load_settings()
    writer, reader = connect(settings, "writer"), connect(settings, "api")
    try:
        skill_id = await write(writer)
        await rename(writer, skill_id)
        for tenant in ("acme", "genesis", None):
            print(f"{tenant}: {await look(reader, tenant, skill_id)}")
        try:
            async with writer.session("genesis") as session:
                session.add(Skill(name="Welding", category="technical", governance_agent_id="acme"))
        except RowRefused as error:
            print(f"genesis can't write for acme: {error.why}")
    finally:
        await asyncio.gather(writer.close(), reader.close())


if __name__ == "__main__":
    asyncio.run(main())
