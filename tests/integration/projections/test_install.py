"""Installing the read models: over what an earlier version made, and while workers write."""

from __future__ import annotations

from devstack import sql
from projections.install import install
from projections.session import Session
from tests.conftest import Database
from tests.support.direct_changes import fetch
from tests.support.tenants import Attempt

POLICIES = """
SELECT relrowsecurity, relforcerowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) AS policies,
       array_agg(attname ORDER BY attnum) AS columns
FROM pg_class AS c JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
WHERE c.oid = 'agents_v1.agents'::regclass GROUP BY c.oid, relrowsecurity, relforcerowsecurity
"""
AGENT = "00000000-0000-4000-8000-00000000a6e7"


async def test_a_table_of_an_earlier_version_is_put_into_its_tenant(database: Database) -> None:
    """Rows that were there belong to `genesis` afterwards, seen by who names it and by no other."""
    new = await fetch(database.superuser_url, POLICIES)
    earlier = [
        "DROP VIEW read_models.agents",
        "DROP POLICY governance_boundary ON agents_v1.agents",
        "ALTER TABLE agents_v1.agents NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE agents_v1.agents DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE agents_v1.agents DROP COLUMN governance_agent_id",
        "CREATE VIEW read_models.agents WITH (security_invoker = true) AS SELECT * FROM agents_v1.agents",
        f"INSERT INTO agents_v1.agents (agent_id, name) VALUES ('{AGENT}', 'from before')",
    ]
    sql.execute(database.owner_url, earlier)

    install(database.owner_url)

    assert await fetch(database.superuser_url, POLICIES) == new
    for tenant, expected in (("genesis", ["('from before',)"]), ("acme", []), (None, [])):
        async with Attempt(database.api_url, tenant) as attempt:
            await attempt.run("SELECT name FROM read_models.agents")
        assert attempt.output == expected


async def test_installing_again_waits_for_no_worker(database: Database) -> None:
    """While a worker's transaction has rows of a read model locked, a second installation is done."""
    before = await fetch(database.superuser_url, POLICIES)
    worker = Session(database.writer_url)
    try:
        worker.begin()
        worker.script(f"INSERT INTO agents_v1.agents (agent_id) VALUES ('{AGENT}')")
        install(f"{database.owner_url}?options=-c%20lock_timeout%3D2s")
        worker.commit()
    finally:
        worker.close()
    assert await fetch(database.superuser_url, POLICIES) == before


async def test_installing_again_waits_for_no_reader(database: Database) -> None:
    """Who reads a view for long does not make it wait, nor every reader behind it."""
    reader = Session(database.api_url)
    try:
        reader.begin()
        reader.query("SELECT count(*) AS n FROM read_models.agents")
        install(f"{database.owner_url}?options=-c%20lock_timeout%3D2s")
    finally:
        reader.close()


def test_installing_again_waits_for_no_worker_where_a_model_has_indexes(database: Database) -> None:
    """An index that is there is left alone: to look whether it is, Postgres would wait for all who write its table."""
    install(database.owner_url)
    worker = Session(database.writer_url)
    try:
        worker.begin()
        worker.script(
            "INSERT INTO marketplace_v3.marketplace_agents (agent_id, name, skill_ids, status, profile_offset)"
            f" VALUES ('{AGENT}', 'a name', '{{}}', 'onboarded', 1)"
        )
        install(f"{database.owner_url}?options=-c%20lock_timeout%3D2s")
        worker.commit()
    finally:
        worker.close()


def test_an_index_that_was_dropped_is_made_again(database: Database) -> None:
    """Installing makes what is missing, as for tables."""
    install(database.owner_url)
    sql.execute(database.owner_url, ["DROP INDEX marketplace_v3.marketplace_agents_name"])

    install(database.owner_url)

    there = "SELECT to_regclass('marketplace_v3.marketplace_agents_name') IS NOT NULL"
    assert sql.value(database.superuser_url, there)
