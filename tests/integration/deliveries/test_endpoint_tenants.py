"""Endpoints and deliveries of a tenant, as plant_endpoints: no other tenant's are seen, changed or guessed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.services import Services

MINE, THEIRS = "genesis", "acme"
ENDPOINTS = {MINE: UUID(int=1), THEIRS: UUID(int=2)}
NOBODYS = UUID(int=3)
TABLES = ("endpoints", "endpoint_secrets", "tenant_deliveries", "tenant_attempts")
HIDDEN = ("webhook_deliveries", "webhook_attempts", "webhook_deliveries_other", "webhook_attempts_other")

ROWS = """
INSERT INTO endpoints (id, governance_agent_id, url, event_types, payload_form, ordering, after_dead_letter,
                       retry_schedule, timeout_seconds, start_offsets)
VALUES ('{id}', '{tenant}', 'https://{tenant}.example.com/', '{{*}}', 'standard', 'none', 'proceed', 'short', 15,
        '{{0}}');
INSERT INTO endpoint_secrets (id, endpoint_id, kind, nonce, ciphertext)
VALUES ('{id}', '{id}', 'v1',
        '{tenant}'::bytea || decode(repeat('00', 12 - {length}), 'hex'), repeat('{tenant}', 5)::bytea);
INSERT INTO webhook_deliveries (occurred_at, id, endpoint_id, event_id, type, entity_id, source_partition,
                                source_offset, source_rank, stream, state, state_at, attempts, hop, token, why)
VALUES (date_trunc('hour', now()), '{id}', '{id}', '{id}', 'genesis.agent.rated', '{id}', 0, 0, 0, 'live', 'dead',
        now(), 1, 1, 1, '{tenant}');
INSERT INTO webhook_attempts (occurred_at, delivery_id, attempted_at, hop, token, attempt, stream, outcome, state,
                              duration_us, why, request, answer)
VALUES (date_trunc('hour', now()), '{id}', now(), 1, 1, 1, 'live', 'failed', 'dead', 1, '{tenant}', '{tenant}',
        '{tenant}');
"""


@pytest.fixture(scope="module")
def filled(stack: Services, template_database: str) -> Iterator[Database]:
    """A database with an endpoint, a secret, a delivery and an attempt of two tenants, in the table of a day."""
    with log_rows.migrated_database(stack, template_database) as made:
        sql.value(made.deliverer_url, "SELECT add_delivery_days(1)")
        check = "ALTER TABLE endpoints DROP CONSTRAINT endpoints_governance_agent_id_check"
        rows = [ROWS.format(id=ENDPOINTS[each], tenant=each, length=len(each)) for each in (MINE, THEIRS)]
        sql.execute(made.superuser_url, [check, *(part for row in rows for part in row.split(";\n") if part.strip())])
        yield made


@pytest_asyncio.fixture
async def mine(filled: Database) -> AsyncIterator[asyncpg.Connection]:
    """A session of plant_endpoints that serves one tenant, in a transaction."""
    connection = await asyncpg.connect(filled.endpoints_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT set_config('plant.governance_agent_id', $1, true)", MINE)
    yield connection
    await transaction.rollback()
    await connection.close()


async def refused(connection: asyncpg.Connection, statement: str, *values: object) -> str:
    """The text of the error that a statement is refused with; the transaction goes on."""
    with pytest.raises(asyncpg.PostgresError) as raised:
        async with connection.transaction():
            await connection.execute(statement, *values)
    return f"{raised.value.sqlstate} {raised.value}"


@pytest.mark.parametrize("table", TABLES)
async def test_rows_of_another_tenant_are_not_seen(mine: asyncpg.Connection, table: str) -> None:
    """Of each table and view there is one's own row; a condition that would tell of another by an error is not run."""
    rows = await mine.fetch(f"SELECT t::text AS whole FROM {table} AS t")
    assert len(rows) == 1
    assert THEIRS not in rows[0]["whole"]
    assert str(ENDPOINTS[MINE]) in rows[0]["whole"]
    if table.startswith("tenant_"):
        await mine.execute("SET LOCAL enable_nestloop = off")  # all rows of both tables are then scanned
        leak = f"SELECT count(*) FROM {table} WHERE 1 / char_length(replace(why, '{THEIRS}', '')) >= 0"
        assert await mine.fetchval(leak) == 1
    is_theirs = f"CASE WHEN t::text LIKE '%{ENDPOINTS[THEIRS]}%' THEN 0 ELSE 1 END"
    assert await mine.fetchval(f"SELECT count(*) FROM {table} AS t WHERE 1 / ({is_theirs}) = 1") == 1


@pytest.mark.parametrize("table", HIDDEN)
async def test_tables_of_deliveries_are_not_asked_directly(mine: asyncpg.Connection, table: str) -> None:
    """Tables that rows are copied into have no policies, so the role has no right on them, nor on their partitions."""
    assert (await refused(mine, f"SELECT FROM {table}")).startswith("42501")


async def test_the_tables_of_days_are_not_asked_either(mine: asyncpg.Connection) -> None:
    """No partition is readable by itself."""
    names = await mine.fetch("SELECT relname FROM pg_class WHERE relname ~ '^webhook_(deliveries|attempts)_[0-9]{8}$'")
    assert len(names) >= 4
    for name in names:
        assert (await refused(mine, f"SELECT FROM {name['relname']}")).startswith("42501")


async def test_rows_of_another_tenant_are_not_changed(mine: asyncpg.Connection, filled: Database) -> None:
    """Updates and deletes that name them find none; none can be given to another tenant, or made for it."""
    theirs, own = ENDPOINTS[THEIRS], ENDPOINTS[MINE]
    pause = "UPDATE endpoints SET state = 'paused' WHERE id = $1"
    assert await mine.execute(pause, theirs) == "UPDATE 0"
    assert (
        await mine.execute("UPDATE endpoint_secrets SET expires_at = now() WHERE endpoint_id = $1", theirs)
        == "UPDATE 0"
    )
    assert await mine.execute("DELETE FROM endpoint_secrets WHERE endpoint_id = $1", theirs) == "DELETE 0"
    assert await mine.execute("UPDATE endpoints SET description = 'x'") == "UPDATE 1"
    assert (await refused(mine, "UPDATE endpoints SET governance_agent_id = 'acme' WHERE id = $1", own)).startswith(
        "42501"
    )
    assert (await refused(mine, "UPDATE endpoint_secrets SET endpoint_id = $1", theirs)).startswith("42501")
    assert (await refused(mine, "DELETE FROM endpoints WHERE id = $1", own)).startswith("42501")
    untouched = "SELECT description || state FROM endpoints WHERE id = '{}'"
    assert sql.value(filled.superuser_url, untouched.format(theirs)) == "active"


async def test_an_error_tells_nothing_of_another_tenant(mine: asyncpg.Connection) -> None:
    """A secret for an endpoint that is another's is refused as one for an endpoint that nobody has."""
    insert = "INSERT INTO endpoint_secrets (id, endpoint_id, kind, nonce, ciphertext) VALUES ($1, $2, 'v1', $3, $4)"
    values = UUID(int=9), bytes(12), bytes(17)
    theirs = await refused(mine, insert, values[0], ENDPOINTS[THEIRS], *values[1:])
    nobodys = await refused(mine, insert, values[0], NOBODYS, *values[1:])
    assert theirs == nobodys
    assert theirs.startswith("42501 new row violates row-level security policy")


async def test_without_a_tenant_there_is_nothing(filled: Database) -> None:
    """A session that names no tenant sees no row of any table or view."""
    connection = await asyncpg.connect(filled.endpoints_url)
    try:
        for table in TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
    finally:
        await connection.close()


@pytest.mark.parametrize(("role", "count"), [("operator", 2), ("writer", 2), ("deliverer", 2)])
async def test_the_other_roles_serve_all_tenants(filled: Database, role: str, count: int) -> None:
    """Operators, dispatchers and deliverers see the endpoints of both."""
    assert sql.value(getattr(filled, f"{role}_url"), "SELECT count(*) FROM endpoints") == count


@pytest.mark.parametrize("role", ["ingress", "api", "auditor", "embedder"])
async def test_nobody_else_reads_endpoints(filled: Database, role: str) -> None:
    """Neither endpoints nor secrets nor deliveries."""
    connection = await asyncpg.connect(getattr(filled, f"{role}_url"))
    try:
        for table in (*TABLES, *HIDDEN):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT FROM {table}")
    finally:
        await connection.close()
