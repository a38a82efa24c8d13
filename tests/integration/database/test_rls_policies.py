"""Row-level security: whatever statement a role thinks of, the other tenant stays out of reach.

Attacks and what they are tried on stand in `tenants.py` and `tenant_writes.py`. Each is also run as a superuser,
whom no policy binds, to see that it would work.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from database.errors import RowRefused
from devstack import sql
from tests.conftest import Database as MigratedDatabase
from tests.support import log_rows
from tests.support.connectors import connected
from tests.support.direct_changes import fetch
from tests.support.services import Services
from tests.support.tenant_writes import FRESH, WRITABLE, WRITES
from tests.support.tenants import (
    DIVIDED,
    ENTITY_TABLES,
    KINDS,
    LINKS,
    MINE,
    READ_MODEL,
    READS,
    SHOW_ALL,
    THEIRS,
    VIEWS,
    Attempt,
    fill,
    ids,
    reads,
)

ROLES = ("owner", "writer", "api", "auditor", "embedder", "deliverer", "endpoints")


@pytest_asyncio.fixture(scope="module")
async def database(stack: Services, template_database: str) -> AsyncIterator[MigratedDatabase]:
    """A migrated database with both tenants filled, and analysed."""
    with log_rows.migrated_database(stack, template_database) as made:
        for tenant in (MINE, THEIRS):
            await fill(made.writer_url, made.embedder_url, tenant)
        sql.execute(made.owner_url, [SHOW_ALL])
        sql.execute(made.superuser_url, ["ANALYZE"])
        yield made


def address(database: MigratedDatabase, role: str) -> str:
    return str(getattr(database, f"{role}_url"))


async def theirs(connection: asyncpg.Connection) -> list[str]:
    """All rows of the other tenant, as a superuser sees them."""
    queries = [
        f"SELECT '{table} ' || to_jsonb(t)::text FROM {table} AS t WHERE governance_agent_id = '{THEIRS}'"
        for table in DIVIDED
    ]
    return sorted(row[0] for row in await connection.fetch(" UNION ALL ".join(queries)))


async def theirs_now(database: MigratedDatabase) -> list[str]:
    async with Attempt(database.superuser_url, None) as attempt:
        return await theirs(attempt.connection)


def shown(output: list[str]) -> list[str]:
    """What of it gives something of theirs away. A statement that is quoted back is the attacker's own."""
    given = [re.sub(r"(SQL statement|LINE \d+:).*", "", text, flags=re.DOTALL) for text in output]
    return [text for text in given if THEIRS in text]


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("role", ROLES)
async def test_no_way_to_read_shows_another_tenant(database: MigratedDatabase, role: str, way: str) -> None:
    """Rows, notices, plans, statistics and error messages hold nothing of the other tenant."""
    async with Attempt(address(database, role), MINE, commit=False) as attempt:
        await attempt.run(*reads(way, (*DIVIDED, *VIEWS)))

    assert shown(attempt.output) == []


@pytest.mark.parametrize("way", READS)
async def test_each_way_to_read_would_work_without_policies(database: MigratedDatabase, way: str) -> None:
    """The same statements as a superuser show every table's rows of the other tenant."""
    tables_only = way in ("TABLESAMPLE", "statistics", "COPY TO")
    async with Attempt(database.superuser_url, MINE, commit=False) as attempt:
        for relation in DIVIDED if tables_only else (*DIVIDED, *VIEWS):
            attempt.output.clear()
            await attempt.run(*reads(way, (relation,)))
            assert any(THEIRS in text for text in attempt.output), relation


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("role", ROLES)
async def test_no_way_to_write_changes_another_tenant(database: MigratedDatabase, role: str, way: str) -> None:
    """Nothing is added to, changed in, taken from or moved to the other tenant, and nothing of it is shown."""
    before = await theirs_now(database)

    async with Attempt(address(database, role), MINE) as attempt:
        for table in WRITABLE:
            await attempt.run(*WRITES[way](table))

    assert await theirs_now(database) == before
    assert shown(attempt.output) == []


@pytest.mark.parametrize("way", WRITES)
async def test_each_way_to_write_would_work_without_policies(database: MigratedDatabase, way: str) -> None:
    """The same statements as a superuser change every table's rows of the other tenant, where no key refuses that."""
    refused_by_keys = {
        "UPDATE of the tenant": {*KINDS.values(), *LINKS, "entities"},
        "INSERT ON CONFLICT": {*KINDS.values(), *LINKS},
    }
    async with Attempt(database.superuser_url, MINE, commit=False) as attempt:
        before = await theirs(attempt.connection)
        for table in WRITABLE:
            await attempt.connection.execute("SAVEPOINT before")
            await attempt.run(*WRITES[way](table))
            reached = await theirs(attempt.connection) != before
            await attempt.connection.execute("ROLLBACK TO before")
            assert reached or table in refused_by_keys.get(way, ()), (table, attempt.output)


@pytest.mark.parametrize("role", ROLES)
async def test_nothing_can_be_emptied(database: MigratedDatabase, role: str) -> None:
    """TRUNCATE knows no rows, so no policy: it is refused to every service, and on entities even to the owner."""
    before = await theirs_now(database)
    tables = ENTITY_TABLES if role == "owner" else DIVIDED

    async with Attempt(address(database, role), MINE) as attempt:
        for table in tables:
            await attempt.run(f"TRUNCATE {table} CASCADE")

    assert [error.sqlstate for error in attempt.refusals] == ["42501"] * len(tables)
    assert await theirs_now(database) == before


@pytest.mark.parametrize("role", ROLES)
async def test_without_a_tenant_nothing_is_visible(database: MigratedDatabase, role: str) -> None:
    """A role that names no tenant, or an empty one, sees no row of any table or view that has tenants."""
    for tenant in (None, ""):
        async with Attempt(address(database, role), tenant) as attempt:
            await attempt.run(*reads("SELECT", (*DIVIDED, *VIEWS)))
        assert [text for text in attempt.output if MINE in text or THEIRS in text] == []

    async with Attempt(database.superuser_url, None) as attempt:
        await attempt.run(*reads("SELECT", (*DIVIDED, *VIEWS)))
    assert len([text for text in attempt.output if MINE in text]) >= len((*DIVIDED, *VIEWS))


async def test_without_a_tenant_nothing_is_written(database: MigratedDatabase) -> None:
    """Neither a row of the default tenant nor one of an empty tenant can be added by who names none."""
    async with Attempt(database.writer_url, None) as attempt:
        for column, value in (("", ""), (", governance_agent_id", ", ''")):
            await attempt.run(
                f"INSERT INTO entities (id, entity_type{column}) VALUES ('{uuid4()}', 'skill'{value})",
                f"INSERT INTO {READ_MODEL} (agent_id{column}) VALUES ('{uuid4()}'{value})",
            )

    assert {error.sqlstate for error in attempt.refusals} <= {"42501", "23514"}
    assert len(attempt.refusals) == 4


@pytest.mark.parametrize("role", ROLES)
async def test_a_tenant_is_what_it_is_called(database: MigratedDatabase, role: str) -> None:
    """No pattern, list, other case, blank or quote in the setting's value stands for the other tenant."""
    tricks = [
        "%", "*", THEIRS.upper(), f"{THEIRS} ", f" {THEIRS}", f"{MINE},{THEIRS}", f"{{{MINE},{THEIRS}}}", "NULL",
        f"{MINE}' OR 'a'='a", f"{THEIRS}\t", THEIRS[:-1], "_" * len(THEIRS), f".*{THEIRS}", THEIRS.replace("a", "а"),
    ]  # fmt: skip
    async with Attempt(address(database, role), MINE) as attempt:
        for trick in tricks:
            await attempt.connection.execute("SELECT set_config('PLANT.Governance_Agent_Id', $1, true)", trick)
            for relation in (*DIVIDED, *VIEWS):
                await attempt.run(f"SELECT count(*), '{relation}' FROM {relation}")

    assert [text for text in attempt.output if text.startswith("(") and not text.startswith("(0,")] == []


async def test_what_a_savepoint_or_reset_leaves_is_never_another_tenant(database: MigratedDatabase) -> None:
    """Rolling back to a savepoint gives the tenant from before it; RESET gives none at all."""
    async with Attempt(database.api_url, MINE) as attempt:
        connection = attempt.connection
        await connection.execute("SAVEPOINT before")
        await connection.execute("SELECT set_config('plant.governance_agent_id', $1, true)", THEIRS)
        await connection.execute("ROLLBACK TO before")
        await attempt.run("SELECT name FROM skills")
        assert attempt.output == [f"('skill of {MINE}',)"]
        attempt.output.clear()
        await connection.execute("RESET plant.governance_agent_id")
        await attempt.run("SELECT name FROM skills")
        assert attempt.output == []


@pytest.mark.parametrize("role", ["writer", "api", "auditor"])
async def test_what_a_block_leaves_in_its_session_does_not_reach_the_next(
    database: MigratedDatabase, role: str
) -> None:
    """A tenant set for the session, a search path, temporary tables and open cursors are gone for the next block."""
    async with connected(address(database, role), database_pool_size=1) as connector:
        async with connector.transaction(THEIRS) as connection:
            for statement in (
                f"SELECT set_config('plant.governance_agent_id', '{THEIRS}', false)",
                "SET search_path = pg_temp, public",
                "CREATE TEMP TABLE entity_versions AS SELECT * FROM public.entity_versions",
                "DECLARE kept CURSOR WITH HOLD FOR SELECT * FROM public.entity_versions",
            ):
                await connection.execute(text(statement))
        for tenant, expected in ((None, set()), (MINE, {MINE})):
            async with connector.transaction(tenant) as connection:
                query = "SELECT DISTINCT governance_agent_id FROM entity_versions"
                assert set((await connection.execute(text(query))).scalars()) == expected
        with pytest.raises(DBAPIError, match="kept"):
            async with connector.transaction(MINE) as connection:
                await connection.execute(text("FETCH ALL FROM kept"))


async def test_a_plan_made_in_one_tenant_is_right_in_another(database: MigratedDatabase) -> None:
    """Prepared statements and functions whose plans are kept ask for the tenant each time they run."""
    connection = await asyncpg.connect(database.api_url)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(
            "CREATE FUNCTION pg_temp.names() RETURNS SETOF text LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN QUERY SELECT name FROM read_models.agents; END $$"
        )
        queries = ["SELECT name FROM skills", "SELECT name FROM read_models.agents", "SELECT pg_temp.names()"]
        prepared = [await connection.prepare(query) for query in queries]
        for tenant in (MINE, THEIRS, MINE, ""):
            async with connection.transaction():
                await connection.execute("SELECT set_config('plant.governance_agent_id', $1, true)", tenant)
                for statement in prepared:
                    found = [row[0] for _ in range(7) for row in await statement.fetch()]
                    assert len(found) == (7 if tenant else 0)
                    assert all(tenant in name for name in found)
    finally:
        await connection.close()


async def test_keys_do_not_tell_what_another_tenant_has(database: MigratedDatabase) -> None:
    """Under the other tenant's ids, a row of a kind or a link is refused in the same words, be it there or not.

    One thing is visible: an entity's id is in use. Ids are unique in a log, since events are ordered by them.
    """
    own, other = ids(MINE), ids(THEIRS)
    async with Attempt(database.writer_url, MINE) as attempt:
        for kind, table in KINDS.items():
            category = (", category", ", 'technical'") if kind == "skill" else ("", "")
            for there in (other.by_kind[kind], other.stub, uuid4()):
                await attempt.run(
                    f"INSERT INTO {table} (id, name, governance_agent_id{category[0]})"
                    f" VALUES ('{there}', 'mine', '{MINE}'{category[1]})"
                )
        for table, columns in LINKS.items():
            for owner, linked in (other.of(table), (other.of(table)[0], uuid4()), (uuid4(), uuid4())):
                await attempt.run(
                    f"INSERT INTO {table} ({', '.join(columns)}, governance_agent_id)"
                    f" VALUES ('{owner}', '{linked}', '{MINE}')"
                )
        output = [re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text) for text in attempt.output]
        assert len(output) == 3 * len((*KINDS, *LINKS))
        assert {error.sqlstate for error in attempt.refusals} == {"23503"}
        assert all(len(set(output[at : at + 3])) == 1 for at in range(0, len(output), 3)), output

        attempt.refusals.clear()
        await attempt.run(f"INSERT INTO entities (id, entity_type, governance_agent_id) VALUES"
                          f" ('{other.stub}', 'skill', '{MINE}')")  # fmt: skip
        ((taken,),) = [attempt.refusals]
        assert (taken.sqlstate, taken.detail) == ("23505", None)
        assert own.stub != other.stub


async def test_an_external_id_is_free_in_each_tenant(database: MigratedDatabase) -> None:
    """What another tenant calls its entities clashes with nothing here."""
    async with Attempt(database.writer_url, MINE, commit=False) as attempt:
        await attempt.run(
            f"INSERT INTO entities (id, entity_type, external_id, governance_agent_id)"
            f" VALUES ('{FRESH}', 'skill', 'skill of {THEIRS}', '{MINE}') RETURNING id"
        )
    assert attempt.refusals == []


@pytest.mark.parametrize("role", ["writer", "api", "auditor"])
async def test_plans_tell_no_more_than_counts(database: MigratedDatabase, role: str) -> None:
    """EXPLAIN ANALYZE meets the policy's condition before the caller's, and its top node has the caller's rows only."""
    async with Attempt(address(database, role), MINE) as attempt:
        query = "SELECT * FROM entity_versions AS t WHERE t::text LIKE '%beta%'"
        ((found,),) = await attempt.connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")
        plan = json.loads(found)[0]["Plan"]
    assert plan["Actual Rows"] == 0
    assert "governance_agent_id" in str(plan)
    assert THEIRS not in found


async def test_the_connector_names_a_refused_row_without_showing_it(database: MigratedDatabase) -> None:
    """A row for another tenant is RowRefused, and says nothing of its values."""
    async with connected(database.writer_url) as connector:
        with pytest.raises(RowRefused) as error:
            async with connector.transaction(MINE) as connection:
                await connection.execute(
                    text(f"INSERT INTO entities (entity_type, governance_agent_id) VALUES ('skill', '{THEIRS}')")
                )
    assert THEIRS not in str(error.value)
    assert await fetch(database.superuser_url, "SELECT FROM entities WHERE external_id IS NULL") == []
