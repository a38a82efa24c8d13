"""Migration 028: the outbox has the tenant of each change, those that wait already among them."""

from __future__ import annotations

from database import migrate
from devstack import sql
from tests.conftest import Database
from tests.support.direct_changes import changing, fetch, insert, made, rename
from tests.support.schema_shape import shape

ROWS = "SELECT governance_agent_id, version, sent_at IS NULL AS waits FROM outbox ORDER BY id"


async def test_what_waits_gets_its_tenant(database: Database) -> None:
    """From its version, whatever the tenant; what was sent keeps none, and what comes later has one."""
    migrate.downgrade(database.owner_url, "027")
    sent = await made(database.writer_url)
    await fetch(database.writer_url, "UPDATE outbox SET sent_at = now() RETURNING id")
    async with changing(database.writer_url) as connection:
        await rename(connection, "skill", sent, "second")
    async with changing(database.writer_url, tenant="acme") as connection:
        await insert(connection, "agent")
    migrate.upgrade(database.owner_url)
    async with changing(database.writer_url, tenant="acme") as connection:
        await insert(connection, "team")

    rows = [tuple(row) for row in await fetch(database.writer_url, ROWS)]
    assert rows == [(None, 1, False), ("genesis", 2, True), ("acme", 1, True), ("acme", 1, True)]
    forced = "SELECT relforcerowsecurity FROM pg_class WHERE oid = 'entity_versions'::regclass"
    assert sql.value(database.owner_url, forced)


def test_it_goes_down_and_up_again(database: Database) -> None:
    """Up again, the schema is the one before."""
    before = shape(database.owner_url)
    migrate.downgrade(database.owner_url, "027")
    migrate.upgrade(database.owner_url)
    assert shape(database.owner_url) == before
