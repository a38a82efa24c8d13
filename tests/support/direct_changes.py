"""Changes of entities made in the database, as somebody with SQL makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg

Fields = dict[str, object]

KINDS: dict[str, Fields] = {
    "agent": {"available": True},
    "skill": {"description": "Chooses keys.", "category": "technical"},
    "job_role": {"description": "Keeps databases.", "seniority": "mid"},
    "industry": {"description": "Makes software."},
    "team": {"description": "Moves the archive."},
}
TABLES = {"agent": "agents", "skill": "skills", "job_role": "job_roles", "industry": "industries", "team": "teams"}
LINKS = {"agent": ("agent_skills", "skill_id"), "job_role": ("job_role_skills", "skill_id")}
LINKS["team"] = ("team_members", "agent_id")


@asynccontextmanager
async def changing(url: str, *, projecting: bool = False, tenant: str = "genesis") -> AsyncIterator[asyncpg.Connection]:
    """A transaction on a connection of its own, in a tenant."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('plant.governance_agent_id', $1, true)", tenant)
            if projecting:
                await connection.execute("SELECT set_config('plant.projecting', 'on', true)")
            yield connection
    finally:
        await connection.close()


async def insert(connection: asyncpg.Connection, kind: str, *, links: Iterable[UUID] = (), **entity: object) -> UUID:
    """An entity of this kind, named `first`, in the transaction's tenant; its id."""
    tenant = await connection.fetchval("SELECT current_setting('plant.governance_agent_id')")
    entity = {"id": uuid4(), **entity, "governance_agent_id": tenant}
    own = {"id": entity["id"], "governance_agent_id": tenant}
    await _insert(connection, "entities", {**entity, "entity_type": kind})
    await _insert(connection, TABLES[kind], {**own, "name": "first", **KINDS[kind]})
    if links:
        table, column = LINKS[kind]
        rows = [(entity["id"], link, tenant) for link in links]
        statement = f"INSERT INTO {table} ({kind}_id, {column}, governance_agent_id) VALUES ($1, $2, $3)"
        await connection.executemany(statement, rows)
    return UUID(str(entity["id"]))


async def rename(connection: asyncpg.Connection, kind: str, entity_id: UUID, name: str) -> None:
    assert await connection.execute(f"UPDATE {TABLES[kind]} SET name = $1 WHERE id = $2", name, entity_id) == "UPDATE 1"


async def delete(connection: asyncpg.Connection, entity_id: UUID) -> None:
    assert await connection.execute("DELETE FROM entities WHERE id = $1", entity_id) == "DELETE 1"


async def made(url: str, kind: str = "skill", *, names: Iterable[str] = ()) -> UUID:
    """An entity that was inserted and then given these names, a transaction each."""
    async with changing(url) as connection:
        entity_id = await insert(connection, kind)
    for name in names:
        async with changing(url) as connection:
            await rename(connection, kind, entity_id, name)
    return entity_id


async def backlog(superuser_url: str, rows: int, *, versions: int = 1, name: str = "") -> None:
    """Unsent rows as the trigger writes them, without the entities; `name` tells their ids from those of others."""
    connection = await asyncpg.connect(superuser_url)
    try:
        await connection.execute(
            """
            INSERT INTO outbox (event_type, entity_id, entity_type, version, occurred_at, state)
            SELECT 'genesis.entity.amended', md5($3 || ' entity ' || n / $2::bigint)::uuid, 'skill', n % $2::bigint + 1,
                   clock_timestamp(), jsonb_build_object('name', 'skill ' || n, 'description', '',
                   'category', 'technical', 'external_id', null, 'status', 'active', 'tags', '[]'::jsonb)
            FROM generate_series(0, $1::bigint - 1) AS n
            """,
            rows,
            versions,
            name,
        )
        await connection.execute("ANALYZE outbox")
    finally:
        await connection.close()


async def fetch(url: str, statement: str, *values: object) -> list[asyncpg.Record]:
    """The rows of one statement."""
    connection = await asyncpg.connect(url)
    try:
        found: list[asyncpg.Record] = await connection.fetch(statement, *values)
        return found
    finally:
        await connection.close()


async def _insert(connection: asyncpg.Connection, table: str, row: Fields) -> None:
    parameters = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({parameters})", *row.values())
