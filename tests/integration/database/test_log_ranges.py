"""Ranges of the log: which can be made, at once and next to readers and writers, and how they are closed and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from devstack import sql
from tests.conftest import Database
from tests.support import log_rows, query_plans
from tests.support.made_ranges import RANGE, SIZE, TOPIC, insert, make, make_ranges, own
from tests.support.services import Services


@pytest.fixture(scope="module")
def shared_database(stack: Services, template_database: str) -> Iterator[Database]:
    """One database for this module, with two ranges of partition 0 and one of partition 1."""
    with log_rows.migrated_database(stack, template_database) as made:
        make_ranges(made)
        yield made


@pytest.fixture
def database(shared_database: Database) -> Database:
    """The module's database, its log empty."""
    log_rows.empty(shared_database)
    return shared_database


@pytest.mark.parametrize(
    ("topic", "partition", "first_offset"),
    [
        ("nobody.owns", 0, 0),
        (TOPIC, 9, 0),
        (TOPIC, -1, 0),
        (TOPIC, 2, 1),
        (TOPIC, 2, SIZE - 1),
        (TOPIC, 2, -SIZE),
        (TOPIC, 2, "NULL"),
        ("NULL", 0, 0),
    ],
)
def test_a_range_that_can_not_be_is_not_made(
    database: Database, topic: str, partition: int, first_offset: object
) -> None:
    """Without an owner, or not at a multiple of a range's size."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        make(database, topic, partition, first_offset)


def test_ranges_are_made_in_their_order(database: Database) -> None:
    """Behind the last record: the next one always, one behind a gap while there are no four empty ones."""
    table = f'log."{TOPIC}/3/{{}}"'
    assert make(database, TOPIC, 3, 4 * SIZE) == make(database, TOPIC, 3, 4 * SIZE) == f"{TOPIC}/3/{4 * SIZE}"
    for number in (6, 11, 12):
        make(database, TOPIC, 3, number * SIZE)
    with pytest.raises(asyncpg.PostgresError, match="not the next one"):
        make(database, TOPIC, 3, 7 * SIZE)
    insert(database, table.format(4 * SIZE), partition="3", offset_=str(4 * SIZE))
    with pytest.raises(asyncpg.PostgresError, match="not the next one"):
        make(database, TOPIC, 3, 3 * SIZE)
    make(database, TOPIC, 3, 5 * SIZE)
    with pytest.raises(asyncpg.PostgresError, match="not the next one"):
        make(database, TOPIC, 3, 7 * SIZE)
    insert(database, table.format(6 * SIZE), partition="3", offset_=str(6 * SIZE))
    make(database, TOPIC, 3, 8 * SIZE)
    make(database, TOPIC, 3, 7 * SIZE)
    assert make(database, TOPIC, 3, 4 * SIZE) == f"{TOPIC}/3/{4 * SIZE}"


LONG = "a" * 249
WILD = (LONG, "a" * 248 + "b", "a" * 33, "a" * 32, "a.b_c-D", "A.B_C-d", ".", "..", "1")


def test_every_name_that_kafka_allows_has_tables_of_its_own(database: Database) -> None:
    """Long ones that begin alike too; offset and partition may have all of their digits."""
    names = {}
    for topic in WILD:
        own(database, topic, 0, 2_147_483_646)
        names[topic] = make(database, topic, 2_147_483_646, (1 << 63) - 2 * SIZE)
        insert(
            database,
            f'log."{names[topic]}"',
            topic=f"'{topic}'",
            partition="2147483646",
            offset_=str((1 << 63) - SIZE - 1),
        )
    assert len(set(names.values())) == len(WILD)
    assert max(map(len, names.values())) <= 63
    query = "SELECT count(*) FROM log_ranges WHERE to_regclass(format('log.%I', table_name)) IS NULL"
    assert sql.value(database.owner_url, query) == 0
    counted = "SELECT array_agg(n) FROM (SELECT count(*) AS n FROM log_records GROUP BY topic) AS each"
    assert sql.value(database.owner_url, counted) == [1] * len(WILD)


@pytest.mark.parametrize(
    "topic", ['a"; DROP TABLE log_ranges; --', "it's", "a/0", "a~12345678", "ä", "", "a" * 250, "a\n"]
)
def test_a_name_that_kafka_refuses_has_no_tables(database: Database, topic: str) -> None:
    """Though it has an owner's row: quotes, slashes and the like name no topic."""
    own(database, topic, 0)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="no name of a topic"):
        make(database, topic, 0, 0)


def test_two_sessions_make_ranges_at_once(database: Database) -> None:
    """Of one partition, of several: each range is made once, and every session gets its table."""
    topic = f"at-once-{uuid4()}"
    own(database, topic, *range(4))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: make(database, topic, number % 4, 0), range(16)))
    assert sorted(made) == sorted(f"{log_name(database, topic)}/{number % 4}/0" for number in range(16))
    assert sql.value(database.owner_url, f"SELECT count(*) FROM log_ranges WHERE topic = '{topic}'") == 4


def log_name(database: Database, topic: str) -> str:
    return str(sql.value(database.owner_url, f"SELECT log_table_name('{topic}', 0)")).rpartition("/")[0]


def test_a_range_is_made_while_others_read_and_write(database: Database) -> None:
    """Neither a reader of the whole log nor a writer of another partition waits or is waited for."""
    insert(database, 'log."t.events/1/0"', partition="1")
    topic = f"beside-{uuid4()}"
    own(database, topic, 0)

    async def while_used(connection: Any) -> None:
        writer = await asyncpg.connect(database.writer_url)
        try:
            async with connection.transaction(), writer.transaction():
                assert await connection.fetchval("SELECT count(*) FROM event_stream") == 1
                await writer.execute("""INSERT INTO log."t.events/1/0" ("offset", created_at, event_id, hash, headers)
                    VALUES (8, now(), gen_random_uuid(), sha256('h'), '')""")
                statements = ["SET lock_timeout = '5s'", f"SELECT make_log_range('{topic}', 0, 0)"]
                sql.execute(database.writer_url, statements)
                assert await connection.fetchval("SELECT count(*) FROM event_stream") == 1
        finally:
            await writer.close()

    log_rows.on_connection(database.auditor_url, while_used)
    assert sql.value(database.auditor_url, "SELECT count(*) FROM event_stream") == 2


def test_others_read_and_write_while_a_range_is_made(database: Database) -> None:
    """The session that makes one has not committed: readers of the log and writers of others go on."""
    topic = f"slow-{uuid4()}"
    own(database, topic, 0)

    async def while_made(connection: Any) -> None:
        async with connection.transaction():
            await connection.fetchval("SELECT make_log_range($1, 0, 0)", topic)
            append = f"""INSERT INTO {RANGE} ("offset", created_at, event_id, hash, headers)
                VALUES (5, now(), gen_random_uuid(), sha256('h'), '')"""
            sql.execute(database.writer_url, ["SET lock_timeout = '5s'", append])
            sql.execute(database.auditor_url, ["SET lock_timeout = '5s'", "SELECT count(*) FROM audit_log"])

    log_rows.on_connection(database.writer_url, while_made)


def test_no_other_role_keeps_a_range_from_being_made(database: Database) -> None:
    """A reader may hold any advisory lock, and can't lock the owner's row, which a range is made under."""
    topic = f"locked-{uuid4()}"
    own(database, topic, 0)

    async def while_locked(connection: Any) -> None:
        await connection.execute("SELECT pg_advisory_lock(hashtextextended('plant.log_ranges.' || $1, 0))", topic)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT FROM partition_owners FOR SHARE")
        statements = ["SET lock_timeout = '5s'", f"SELECT make_log_range('{topic}', 0, 0)"]
        sql.execute(database.writer_url, statements)

    log_rows.on_connection(database.api_url, while_locked)


def test_owners_of_another_consumer_have_no_ranges(database: Database) -> None:
    """What reads a topic besides the projector does not write its log."""
    topic = f"read-{uuid4()}"
    own(database, topic, 0)
    sql.execute(database.owner_url, [f"UPDATE partition_owners SET consumer = 'other' WHERE topic = '{topic}'"])
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="has no owner"):
        make(database, topic, 0, 0)


SUMMARIZE = "SELECT summarize_log_range('{}', 0, 0)"
ANALYSED = "SELECT reltuples FROM pg_class WHERE oid = 'log.\"{}/0/0\"'::regclass"


def test_an_open_range_is_analysed_once(database: Database) -> None:
    """Until it is, Postgres reads it as a whole for an event id; later on autovacuum looks after it."""
    topic = "analysed"
    own(database, topic, 0)
    table = f'log."{make(database, topic, 0, 0)}"'
    for first in (0, 50):
        sql.execute(
            database.writer_url,
            [
                f"""
            INSERT INTO {table} ("offset", created_at, event_id, hash, headers)
            SELECT n, now(), gen_random_uuid(), sha256('h'), '' FROM generate_series({first}, {first + 49}) AS n"""
            ],
        )
        assert sql.value(database.writer_url, SUMMARIZE.format(topic)) is not None
        assert sql.value(database.owner_url, ANALYSED.format(topic)) == 50
    columns = "SELECT array_agg(attname::text) FROM pg_stats WHERE schemaname = 'log' AND tablename = 'analysed/0/0'"
    assert sql.value(database.superuser_url, columns) == ["event_id"]
    assert sql.value(database.writer_url, "SELECT summarize_log_range('analysed', 0, 7)") is None


def test_a_range_that_is_vacuumed_is_not_waited_for(database: Database) -> None:
    """The worker would be held up, and end the vacuum; the next call does what was left."""
    topic = "vacuumed-now"
    own(database, topic, 0)
    table = f'log."{make(database, topic, 0, 0)}"'

    async def while_vacuumed(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
            assert sql.value(database.writer_url, SUMMARIZE.format(topic)) is None

    log_rows.on_connection(database.owner_url, while_vacuumed)
    assert sql.value(database.writer_url, SUMMARIZE.format(topic)) is not None


def test_autovacuum_comes_early_for_statistics_and_once_for_freezing(database: Database) -> None:
    """An open range is analysed from its first hundreds of rows on; a closed one is frozen at once, as a whole."""
    topic = f"vacuumed-{uuid4()}"
    own(database, topic, 0)
    names = [make(database, topic, 0, first) for first in (0, SIZE)]
    insert(database, f'log."{names[1]}"', topic=f"'{topic}'", offset_=str(SIZE))
    assert sql.value(database.writer_url, f"SELECT index_log_range('{topic}', 0, 0)")
    options = "SELECT array_agg(o ORDER BY o) FROM pg_class, unnest(reloptions) AS o WHERE oid = {}::regclass"
    closed, opened = (sql.value(database.owner_url, options.format(sql.literal(f'log."{name}"'))) for name in names)
    early = ["autovacuum_analyze_scale_factor=0.05", "autovacuum_analyze_threshold=500"]
    assert opened == [*early, "autovacuum_vacuum_insert_threshold=5000000"]
    frozen = ["autovacuum_vacuum_insert_scale_factor=0", "autovacuum_vacuum_insert_threshold=1000"]
    assert closed == [*early, "autovacuum_freeze_min_age=0", *frozen]


def test_only_a_full_range_is_indexed_and_closed(database: Database) -> None:
    """The open one is refused its index and is not closed without it; doing it again changes nothing."""
    topic = f"closed-{uuid4()}"
    own(database, topic, 0)
    make(database, topic, 0, 0)
    index, close = (f"SELECT {name}_log_range('{topic}', 0, 0)" for name in ("index", "close"))
    closed_at = f"SELECT closed_at FROM log_ranges WHERE topic = '{topic}' AND first_offset = 0"
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="not one to close"):
        sql.value(database.writer_url, index)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="not one to close"):
        sql.value(database.writer_url, f"SELECT index_log_range('{topic}', 0, {SIZE})")
    assert sql.value(database.writer_url, close) is False

    later = f'log."{make(database, topic, 0, SIZE)}"'
    assert sql.value(database.writer_url, close) is False
    insert(database, later, topic=f"'{topic}'", offset_=str(SIZE))
    assert [sql.value(database.writer_url, index) for _ in range(2)] == [True, False]
    assert sql.value(database.writer_url, closed_at) is None
    assert sql.value(database.writer_url, close) is True
    at = sql.value(database.writer_url, closed_at)
    assert sql.value(database.writer_url, close) is True
    assert sql.value(database.writer_url, closed_at) == at
    assert sql.value(database.writer_url, f"SELECT close_log_range('{topic}', 0, {SIZE})") is False


def test_an_index_shows_an_event_that_was_applied_twice(database: Database) -> None:
    """Applied and parked ids are unique in a full range; repeats, poison and control records are left out."""
    topic = f"twice-{uuid4()}"
    own(database, topic, 0)
    table, same = f'log."{make(database, topic, 0, 0)}"', f"'{uuid4()}'"
    make(database, topic, 0, SIZE)
    where = {"topic": f"'{topic}'", "event_id": same}
    insert(database, table, **where, offset_="1")
    insert(database, table, **where, offset_="2", disposition="'repeat'")
    insert(database, table, **where, offset_="3", disposition="'poison'", reason="'why'")
    insert(database, table, **where, offset_="4", disposition="'control'")
    insert(database, table, **where, offset_="5", disposition="'parked'")
    index = f"SELECT index_log_range('{topic}', 0, 0)"
    with pytest.raises(asyncpg.UniqueViolationError, match="event_ids_"):
        sql.value(database.writer_url, index)
    sql.execute(
        database.superuser_url, ["SET session_replication_role = replica", f'DELETE FROM {table} WHERE "offset" = 5']
    )
    assert sql.value(database.writer_url, index)


@pytest.fixture(scope="module")
def filled_log(stack: Services, template_database: str) -> Iterator[str]:
    """The superuser's address of a database whose log has three ranges, with statistics; tests only read it."""

    async def filled(connection: Any) -> None:
        await query_plans.fill_log(connection, 2 * query_plans.RANGE_OFFSETS + 10)
        await connection.execute("ANALYZE")

    with log_rows.migrated_database(stack, template_database) as made:
        log_rows.on_connection(made.superuser_url, filled)
        yield made.superuser_url


@pytest.mark.parametrize(
    ("query", "arguments", "read"),
    [
        (
            'SELECT value FROM event_stream WHERE topic = $1 AND partition = $2 AND "offset" = $3',
            ("text", "int", "bigint"),
            1,
        ),
        (
            'SELECT hash FROM audit_log WHERE topic = $1 AND partition = $2 AND "offset" = $3',
            ("text", "int", "bigint"),
            1,
        ),
        (
            'SELECT "offset", hash FROM log_records WHERE topic = $1 AND partition = $2 ORDER BY "offset" DESC LIMIT 1',
            ("text", "int"),
            1,
        ),
    ],
)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_a_record_is_read_from_one_range(
    filled_log: str, query: str, arguments: tuple[str, ...], read: int, mode: str
) -> None:
    """One record by its position, and the last one of a partition: other ranges are not looked at."""

    async def ranges_read(connection: Any) -> set[str]:
        await connection.execute(f"SET plan_cache_mode = {mode}")
        await connection.execute(f"PREPARE asked ({', '.join(arguments)}) AS {query}")
        values = [f"'{query_plans.TOPIC}'", str(query_plans.PARTITION), "5000"][: len(arguments)]
        shown = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ({', '.join(values)})")
        return set(tables_read(json.loads(shown)[0]["Plan"]))

    assert len(log_rows.on_connection(filled_log, ranges_read)) == read


def test_the_last_hash_is_read_from_the_last_range_that_has_records(stack: Services, template_database: str) -> None:
    """By its index, though no range was ever analysed; an empty range behind it is passed by."""
    scans_of = "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE schemaname = 'log'"

    async def head(connection: Any) -> tuple[bytes, list[tuple[str, int, int]]]:
        await query_plans.fill_log(connection, 2 * query_plans.RANGE_OFFSETS)
        await query_plans.make_ranges(connection, 0, 2 * query_plans.RANGE_OFFSETS)
        await connection.execute("SELECT pg_stat_force_next_flush()")
        await connection.execute("SELECT pg_stat_reset()")
        found = await connection.fetchval("SELECT hash_before('genesis.events', 1, 9223372036854775807)")
        await connection.execute("SELECT pg_stat_force_next_flush()")
        return found, [
            tuple(row) for row in await connection.fetch(f"{scans_of} AND seq_scan + idx_scan > 0 ORDER BY 1")
        ]

    with log_rows.migrated_database(stack, template_database) as made:
        found, scans = log_rows.on_connection(made.superuser_url, head)
        last = f"SELECT sha256('{2 * query_plans.RANGE_OFFSETS}')"
        assert found == sql.value(made.superuser_url, last)
    names = [query_plans.range_table(query_plans.RANGE_OFFSETS), query_plans.range_table(2 * query_plans.RANGE_OFFSETS)]
    assert [name for name, _, _ in scans if name.startswith("genesis.events/1/")] == names
    assert all(by_index == 1 and whole == 0 for name, whole, by_index in scans if name == names[0])


def tables_read(plan: dict[str, Any]) -> Iterator[str]:
    """The tables that were scanned at least once."""
    if "Relation Name" in plan and plan["Actual Loops"]:
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from tables_read(part)
