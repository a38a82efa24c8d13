"""Migrations 017, 018 and 020 with data: the log of two tables, carried over to one, and back again.

PLANT_CARRIED_RECORDS is how many records that are; by default some thousands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from database import migrate
from database.errors import DatabaseUnreachable, MigrationLocked, MigrationRefused
from database.migrations import log_records
from devstack import sql
from tests.conftest import Database
from tests.support import former_log, log_rows
from tests.support.former_log import ROWS
from tests.support.log_tables import set_range_offsets
from tests.support.other_postgres import fresh_postgres_16
from tests.support.schema_shape import shape
from tests.support.services import Services

TOPIC = "genesis.events"
RECORDS = int(os.environ.get("PLANT_CARRIED_RECORDS", "6000"))
PARTITIONS = 3
RANGE = max(512, RECORDS // 10)
SLICE = max(300, min(RECORDS // 20, 50_000))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slices a range."""
    monkeypatch.setattr(log_records, "RECORDS_MAX", SLICE)


@pytest.fixture(scope="module")
def former_template(stack: Services, template_database: str) -> Iterator[str]:
    """The name of a database at revision 016."""
    with log_rows.migrated_database(stack, template_database) as made:
        assert migrate.downgrade(made.owner_url, "016") == ("016",)
        yield made.name


@pytest.fixture
def former(stack: Services, former_template: str) -> Iterator[Database]:
    """A copy of it: going down takes longer."""
    with log_rows.migrated_database(stack, former_template) as made:
        yield made


@pytest.fixture
def postgres_16(tmp_path: Path) -> Iterator[str]:
    """The superuser's address of a fresh Postgres 16, migrated to 016."""
    with fresh_postgres_16(tmp_path) as url:
        roles = (Path(migrate.__file__).parent / "roles.sql").read_text(encoding="utf-8")
        sql.execute(url, [roles, "CREATE EXTENSION vector"])
        migrate.upgrade(url, "016")
        yield url


def fill(url: str, records: int = RECORDS) -> list[bytes]:
    """Fill the two tables of before, in partitions of their own lengths; return the heads of their chains."""
    each = records // PARTITIONS
    return [former_log.fill(url, TOPIC, partition, each - 7 * partition) for partition in range(PARTITIONS)]


def make_ranges_small(url: str) -> None:
    """Go up to 017, and have ranges of some hundred offsets from there on."""
    migrate.upgrade(url, "017")
    set_range_offsets(url, RANGE)


def carry_over_and_back(url: str) -> None:
    """Up with data: every row as before, in ranges that are closed but for the last ones; down and up: the same."""
    fill(url)
    rows, before = sql.value(url, ROWS), shape(url)
    assert former_log.chains_hold(url, PARTITIONS)
    make_ranges_small(url)

    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows
    assert former_log.chains_hold(url, PARTITIONS)
    misplaced = "SELECT count(*) FROM log_records WHERE tableoid::regclass <> to_regclass(format('log.%I', topic || '/'"
    assert sql.value(url, f'{misplaced} || partition || \'/\' || ("offset" - "offset" % {RANGE})))') == 0
    ranges = "SELECT count(*) FROM log_ranges AS r WHERE (closed_at IS NULL) {} EXISTS (SELECT FROM log_ranges AS l"
    later = " WHERE (l.topic, l.partition) = (r.topic, r.partition) AND l.first_offset > r.first_offset)"
    assert sql.value(url, ranges.format("=") + later) == 0
    assert sql.value(url, ranges.format("IS NOT NULL AND") + later) > PARTITIONS
    indexes = "SELECT count(*) FROM pg_class WHERE relname ~ '^event_ids_' AND relnamespace = 'log'::regnamespace"
    assert sql.value(url, indexes) == sql.value(url, "SELECT count(closed_at) FROM log_ranges")
    after = shape(url)

    assert migrate.downgrade(url, "016") == ("016",)
    assert sql.value(url, ROWS) == rows
    assert shape(url) == before
    make_ranges_small(url)
    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows
    assert shape(url) == after


def test_every_row_is_carried_over_and_back(former: Database) -> None:
    """Repeats, poison, parked records, odd keys and gaps included, up, down and up again."""
    carry_over_and_back(former.owner_url)


def test_every_row_is_carried_over_on_postgres_16(postgres_16: str) -> None:
    """As on 18."""
    carry_over_and_back(postgres_16)


def test_an_interrupted_migration_goes_on_where_it_was(former: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is ended before and after the commit of each slice; what is committed is not carried over again."""
    url, functions = former.owner_url, log_records.FUNCTIONS
    fill(former.writer_url, 1_500)
    rows = sql.value(url, ROWS)
    make_ranges_small(url)
    end = "PERFORM pg_terminate_backend(pg_backend_pid())"
    commit = "> 0 LOOP\n            COMMIT;"
    assert functions.count(commit) == 1
    carried = "SELECT count(*) FROM log_records"

    monkeypatch.setattr(log_records, "FUNCTIONS", functions.replace(commit, f"> 0 LOOP {end}; COMMIT;"))
    with pytest.raises(DatabaseUnreachable):
        migrate.upgrade(url, "018")
    assert sql.value(url, carried) == 0
    monkeypatch.setattr(log_records, "FUNCTIONS", functions.replace(commit, f"{commit} {end};"))
    counts = [0]
    while migrate.current(url) == ("017",):
        try:
            migrate.upgrade(url, "018")
        except DatabaseUnreachable:
            counts.append(sql.value(url, carried))
    assert len(counts) > PARTITIONS
    assert all(0 < after - before <= SLICE for before, after in pairwise(counts))

    monkeypatch.setattr(log_records, "FUNCTIONS", functions)
    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows


def test_a_worker_of_before_goes_on_while_its_log_is_carried_over(former: Database) -> None:
    """It appends while 018 runs and after it; 020 brings the rest, across the end of a range."""
    url, each = former.owner_url, RECORDS // PARTITIONS
    heads = fill(former.writer_url)
    make_ranges_small(url)
    with ThreadPoolExecutor(1) as pool:
        running, start = pool.submit(migrate.upgrade, url, "018"), each
        while not running.done():
            heads[0] = former_log.fill(former.writer_url, TOPIC, 0, 50, start, heads[0])
            start += 50
        assert running.result() == ("018",)
    former_log.fill(former.writer_url, TOPIC, 0, 2 * RANGE, start, heads[0])
    former_log.fill(former.writer_url, TOPIC, PARTITIONS, 20)
    rows = sql.value(url, ROWS)

    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows


STREAM, AUDIT, HERE = "event_stream", "audit_log", f"topic = '{TOPIC}' AND partition = 1 AND \"offset\" = 551"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            f"UPDATE {AUDIT} SET previous_hash = sha256('x') WHERE {HERE}",
            "from offset 551 on: the entry there does not",
        ),
        (f"UPDATE {AUDIT} SET hash = sha256('x') WHERE {HERE}", "from offset 552 on: the entry there does not follow"),
        (f"DELETE FROM {AUDIT} WHERE {HERE}", "from offset 551 on: event_stream has a record there that audit_log"),
        (f"DELETE FROM {STREAM} WHERE {HERE}", "from offset 551 on: audit_log has an entry there that event_stream"),
        (f"UPDATE {STREAM} SET created_at = now() WHERE {HERE}", "from offset 551 on: .* different times"),
        (f"UPDATE {STREAM} SET key = NULL WHERE {HERE}", "from offset 551 on: the record there is an entity's and has"),
        (f"DELETE FROM {STREAM} WHERE partition = 1", r"events/1 can not be carried over: audit_log has entries"),
        (f'DELETE FROM {STREAM} WHERE partition = 2 AND "offset" > 500', "events/2 .* after offset 500 that"),
    ],
    ids=str,
)
def test_a_damaged_log_is_refused_by_name(former: Database, damage: str, reason: str) -> None:
    """With partition and offset; nothing is lost, and once it is mended the migration goes on."""
    url = former.owner_url
    fill(former.writer_url, 2_400)
    rows = sql.value(url, ROWS)
    backup = [f"CREATE TABLE {each}_kept AS TABLE {each}" for each in (STREAM, AUDIT)]
    sql.execute(former.superuser_url, ["SET session_replication_role = replica", *backup, damage])
    with pytest.raises(MigrationRefused, match=reason) as error:
        migrate.upgrade(url, "020")
    assert error.value.exit_code == 3
    assert migrate.current(url) == ("017",)

    mend = [f"TRUNCATE {each}; INSERT INTO {each} TABLE {each}_kept" for each in (STREAM, AUDIT)]
    sql.execute(former.superuser_url, ["SET session_replication_role = replica", *mend])
    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows


def test_damage_between_the_steps_is_refused_too(former: Database) -> None:
    """What 018 did not see, 020 does: the tables of before are not dropped."""
    url = former.owner_url
    heads = fill(former.writer_url, 900)
    migrate.upgrade(url, "019")
    former_log.fill(former.superuser_url, TOPIC, 0, 20, 300, heads[1])
    with pytest.raises(MigrationRefused, match="from offset 330 on: the entry there does not follow"):
        migrate.upgrade(url, "020")
    assert migrate.current(url) == ("019",)
    assert sql.value(url, "SELECT count(*) FROM event_stream") == 900 - 21 + 20


def test_a_reader_of_the_log_makes_the_last_step_give_up(former: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names stay where they were until the reader is done; then they move."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 1)
    url = former.owner_url
    fill(former.writer_url, 900)
    rows = sql.value(url, ROWS)

    async def while_read(connection: Any) -> None:
        async with connection.transaction():
            await connection.fetchval("SELECT count(*) FROM event_stream")
            with pytest.raises(MigrationLocked, match="changed nothing"):
                migrate.upgrade(url, "020")
            assert migrate.current(url) == ("019",)
            assert await connection.fetchval("SELECT count(*) FROM audit_log") == 900 - 21

    log_rows.on_connection(former.auditor_url, while_read)
    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows


def test_a_view_of_somebody_else_is_named(former: Database) -> None:
    """It stands on a table that goes; once it is dropped, the migration goes on."""
    url = former.owner_url
    sql.execute(url, ["CREATE VIEW mine AS SELECT reason FROM event_stream"])
    with pytest.raises(MigrationRefused, match="view mine depends on table event_stream"):
        migrate.upgrade(url, "020")
    assert migrate.current(url) == ("019",)
    sql.execute(url, ["DROP VIEW mine"])
    assert migrate.upgrade(url, "020") == ("020",)


def test_an_empty_range_hides_no_records(former: Database) -> None:
    """One that was made and never written, the last one or not, is no sign that all is carried over."""
    url = former.owner_url
    fill(former.writer_url, 1_800)
    rows = sql.value(url, ROWS)
    make_ranges_small(url)
    sql.execute(url, [f"SELECT add_log_range('{TOPIC}', {each}, {each * RANGE})" for each in range(PARTITIONS)])
    migrate.upgrade(url, "020")
    assert sql.value(url, ROWS) == rows


def test_the_way_down_is_closed_by_a_control_record(former: Database) -> None:
    """Earlier versions could not read it; down is refused by name before a migration is undone, however it is asked."""
    url = former.owner_url
    fill(former.writer_url, 900)
    migrate.upgrade(url)
    rows = sql.value(url, ROWS)
    insert = """INSERT INTO log_records (topic, partition, "offset", created_at, disposition, hash, headers)
        VALUES ('genesis.events', 1, 5000, now(), 'control', sha256('h'), '')"""
    sql.execute(former.owner_url, [insert])
    for target in ("019", "base", "event_log@base"):
        with pytest.raises(MigrationRefused, match="events/1 has a control record at offset 5000"):
            migrate.downgrade(url, target)
        assert migrate.current(url) == migrate.heads()
    assert migrate.downgrade(url, "020") == ("020",)
    with pytest.raises(MigrationRefused, match="events/1 has a control record at offset 5000"):
        migrate.downgrade(url, "-1")
    assert migrate.current(url) == ("020",)
    sql.execute(
        former.superuser_url,
        ["SET session_replication_role = replica", 'DELETE FROM log_records WHERE "offset" = 5000'],
    )
    assert sql.value(url, ROWS) == rows
    assert migrate.downgrade(url, "019") == ("019",)
    assert sql.value(url, ROWS) == rows
