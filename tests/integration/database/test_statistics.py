"""Postgres's statistics of our tables: made from the first hundreds of rows on, and after loads of our own."""

from __future__ import annotations

import asyncpg
import pytest

from database import migrate
from database.statistics import refresh_statement
from devstack import sql
from operations.seed import esco, seed
from tests.conftest import Database
from tests.support import former_log, log_rows, query_plans
from tests.support.connectors import connected

LARGEST_THRESHOLD, LARGEST_SCALE = 1_000, 0.1
ROWS_KNOWN = "SELECT reltuples::bigint FROM pg_class WHERE oid = '{}'::regclass"

RANGE, OTHER_RANGE = ('log."genesis.events/0/0"', 'log."genesis.events/1/0"')

OPTIONS = """
SELECT c.oid::regclass::text AS table, o.option_name AS name, o.option_value::float8 AS value
FROM pg_class AS c, pg_options_to_table(c.reloptions) AS o
WHERE c.relkind = 'r' AND o.option_name LIKE 'autovacuum_analyze_%' OR o.option_name = 'autovacuum_enabled'
"""


def test_no_table_waits_long_for_its_statistics(database: Database) -> None:
    """Each is analysed at a thousand changes at the latest, and again when a tenth has changed; the log sooner."""

    async def read(connection: asyncpg.Connection[asyncpg.Record]) -> list[tuple[str, str, float]]:
        return [tuple(row) for row in await connection.fetch(OPTIONS)]

    sql.execute(database.superuser_url, ["SELECT add_log_range('t', 0, 0)"])
    options = log_rows.on_connection(database.superuser_url, read)
    late = [
        (table, name, value)
        for table, name, value in options
        if name == "autovacuum_enabled"
        or value > (LARGEST_THRESHOLD if name == "autovacuum_analyze_threshold" else LARGEST_SCALE)
    ]
    assert late == []
    own = {table for table, name, _ in options if name == "autovacuum_analyze_scale_factor"}
    assert own == {'log."t/0/0"'}


def test_the_writer_has_its_tables_analysed(database: Database) -> None:
    """Though it owns none of them; a table that was never analysed has -1 rows for Postgres."""
    assert sql.value(database.superuser_url, ROWS_KNOWN.format("agents_v1.agents")) == -1
    log_rows.on_connection(database.superuser_url, lambda connection: query_plans.fill(connection, 10))
    sql.execute(database.writer_url, [refresh_statement([RANGE, "agents_v1.agents"])])
    assert sql.value(database.superuser_url, ROWS_KNOWN.format(RANGE)) == 10
    assert sql.value(database.superuser_url, ROWS_KNOWN.format("agents_v1.agents")) == 10
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(database.api_url, [refresh_statement([RANGE])])


def test_a_table_that_is_being_analysed_is_left_out(database: Database) -> None:
    """Workers that fill one model at the same time do not wait for each other."""

    async def while_locked(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {RANGE} IN SHARE UPDATE EXCLUSIVE MODE")
            sql.execute(database.writer_url, [refresh_statement([RANGE, OTHER_RANGE])])

    log_rows.on_connection(database.superuser_url, lambda connection: query_plans.fill(connection, 10))
    log_rows.on_connection(database.superuser_url, while_locked)
    known = [sql.value(database.superuser_url, ROWS_KNOWN.format(table)) for table in (RANGE, OTHER_RANGE)]
    assert known == [-1, 10]


async def test_seeding_leaves_statistics(database: Database) -> None:
    """The first query on what was seeded comes before autovacuum."""
    entities = esco("genesis")[:150]
    async with connected(database.writer_url) as connector:
        await seed(connector, entities, lambda _: None)
    for table in ("entities", "skills", "entity_versions"):
        assert sql.value(database.superuser_url, ROWS_KNOWN.format(table)) == len(entities)


def test_an_upgrade_analyses_the_log_that_is_there(database: Database) -> None:
    """What was written under the former settings has statistics after the migration, and the settings go back."""
    migrate.downgrade(database.owner_url, "012")
    thresholds = "SELECT array_agg(option_value ORDER BY 1) FROM pg_class, pg_options_to_table(reloptions) WHERE oid IN"
    tables = "('event_stream'::regclass, 'audit_log'::regclass) AND option_name = 'autovacuum_analyze_threshold'"
    assert sql.value(database.superuser_url, f"{thresholds} {tables}") == ["1000000", "1000000"]
    former_log.store(database.writer_url, log_rows.log())
    migrate.upgrade(database.owner_url, "016")
    assert sql.value(database.superuser_url, ROWS_KNOWN.format("event_stream")) == len(log_rows.log())
