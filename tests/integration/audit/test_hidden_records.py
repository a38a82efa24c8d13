"""Records that some queries see and others do not: what a superuser sets up around the rows is found, or no verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from audit.verifier.chains import verify_chains
from audit.verifier.errors import LogUnreadable, LogViewsAltered
from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.log_rows import Row
from tests.support.services import Services

SIZE = 1 << 20
PARTITION = 'log."genesis.events/0"'
SECOND = f'log."genesis.events/0/{SIZE}"'

FORGE = """
DO $$
DECLARE
    bounds text := pg_get_partition_constraintdef('{table}'::regclass);
BEGIN
    ALTER TABLE {partition} DETACH PARTITION {table};
    INSERT INTO {table} ("offset", created_at, event_id, hash, headers)
    VALUES (9, now(), gen_random_uuid(), sha256('h'), '');
    EXECUTE 'ALTER TABLE {table} ADD CONSTRAINT bounds CHECK (' || bounds || ') NOT VALID';
END
$$
"""


@pytest.fixture
def log_database(stack: Services, template_database: str) -> Iterator[Database]:
    """A database of the test's own, for its tables are changed."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


@pytest.fixture
def two_ranges(log_database: Database) -> list[Row]:
    """A chain over two ranges, good as it stands."""
    rows = [log_rows.row("genesis.events", 0, offset, log_rows.onboarded(offset)) for offset in (3, 4, SIZE, SIZE + 1)]
    log_rows.store(log_database, log_rows.linked(rows))
    assert found(log_database) == []
    return rows


def superuser(database: Database, *statements: str) -> None:
    """Run statements as who has switched the triggers off."""
    sql.execute(database.superuser_url, ["SET session_replication_role = replica", *statements])


def move(database: Database, change: str) -> None:
    """Change rows of the second range, past its constraints, and have Postgres attach it unread."""
    made = "DO $$ BEGIN EXECUTE 'ALTER TABLE {} ADD CONSTRAINT bounds CHECK (' || {} || ') NOT VALID'; END $$"
    superuser(
        database,
        f"CREATE TABLE bounds AS SELECT pg_get_partition_constraintdef('{SECOND}'::regclass) AS text",
        f"ALTER TABLE {PARTITION} DETACH PARTITION {SECOND}",
        change,
        made.format(SECOND, "(SELECT text FROM bounds)"),
        "DROP TABLE bounds",
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'bounds'",
        f"ALTER TABLE {PARTITION} ATTACH PARTITION {SECOND} FOR VALUES FROM ({SIZE}) TO ({2 * SIZE})",
    )


def found(database: Database, **choice: Any) -> list[tuple[int, str]]:
    """Offsets and problems of the findings."""
    findings = [verdict.finding for verdict in verify_chains(database.auditor_url, jobs=1, **choice)]
    return [(each.offset, each.problem) for each in findings if each is not None]


def test_a_record_in_a_table_of_other_offsets_is_found(log_database: Database, two_ranges: list[Row]) -> None:
    """A constraint that only seems to be valid has Postgres attach the table unread; a fold would read the record."""
    superuser(
        log_database,
        FORGE.format(table=SECOND, partition=PARTITION, first=SIZE, until=2 * SIZE),
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'bounds'",
        f"ALTER TABLE {PARTITION} ATTACH PARTITION {SECOND} FOR VALUES FROM ({SIZE}) TO ({2 * SIZE})",
    )
    forged = "SELECT count(*) FROM log_records WHERE topic = 'genesis.events' AND partition = 0 AND \"offset\" {}"
    assert sql.value(log_database.auditor_url, forged.format(f"< {2 * SIZE}")) == 5
    assert sql.value(log_database.auditor_url, forged.format("= 9")) == 0
    ((offset, problem),) = found(log_database)
    assert (offset, "in a table of other offsets" in problem) == (9, True)


FOREIGN = [(at, chain) for at in (SIZE, SIZE + 3, SIZE + 6) for chain in ("genesis.events/7", "other/0")]


@pytest.mark.parametrize("choice", [{}, {"partition": 0}], ids=["all", "one partition"])
@pytest.mark.parametrize(("offset", "chain"), FOREIGN, ids=[f"{at - SIZE} {chain}" for at, chain in FOREIGN])
def test_a_record_in_a_table_of_another_partition_is_found(
    log_database: Database, offset: int, chain: str, choice: dict[str, int]
) -> None:
    """First, in the middle or last: readers without a condition see it, and those of either partition do not.

    Its hash is what the chain asks for, so nothing but where it lies is wrong.
    """
    offsets = (3, 4, SIZE + 1, SIZE + 5)
    rows = [log_rows.row("genesis.events", 0, each, log_rows.onboarded(each)) for each in offsets]
    forged = log_rows.row("genesis.events", 0, offset, log_rows.onboarded(99))
    linked = log_rows.linked(sorted([*rows, forged], key=lambda row: row.offset))
    log_rows.store(log_database, linked)
    assert found(log_database) == []
    topic, partition = chain.split("/")
    move(log_database, f"UPDATE {SECOND} SET topic = '{topic}', partition = {partition} WHERE \"offset\" = {offset}")
    counted = "SELECT count(*) FROM event_stream WHERE "
    assert sql.value(log_database.auditor_url, f"{counted} true") == 5
    for each in ("topic = 'genesis.events' AND partition = 0", f"topic = '{topic}' AND partition = {partition}"):
        assert sql.value(log_database.auditor_url, f'{counted} {each} AND "offset" = {offset}') == 0
    assert found(log_database, **choice) == [(offset, f"a record of {chain} is in a table of this partition")]


@pytest.mark.parametrize("offset", [9, SIZE - 1, 2 * SIZE, 3 * SIZE])
def test_a_record_outside_of_its_tables_offsets_is_found(
    log_database: Database, two_ranges: list[Row], offset: int
) -> None:
    """Before the first record that belongs there, or behind the last one."""
    move(log_database, f'UPDATE {SECOND} SET "offset" = {offset} WHERE "offset" = {SIZE + 1}')
    ((at, problem),) = found(log_database)
    assert (at, "in a table of other offsets" in problem) == (offset, True)


@pytest.mark.parametrize("statement", [f"ALTER TABLE {PARTITION} DETACH PARTITION {SECOND}", f"DROP TABLE {SECOND}"])
def test_a_last_range_that_was_taken_away_is_found(
    log_database: Database, two_ranges: list[Row], statement: str
) -> None:
    """Its chain would only seem to end earlier; the list of ranges still has it."""
    superuser(log_database, statement)
    ((offset, problem),) = found(log_database)
    assert (offset, "detached or dropped" in problem) == (SIZE, True)


def test_a_partition_that_was_taken_away_is_found(log_database: Database, two_ranges: list[Row]) -> None:
    """Nothing of its chain is left to be wrong."""
    superuser(log_database, f"ALTER TABLE log_records DETACH PARTITION {PARTITION}")
    ((offset, problem),) = found(log_database)
    assert (offset, "detached or dropped" in problem) == (0, True)


def test_a_policy_that_hides_rows_is_no_verdict(log_database: Database, two_ranges: list[Row]) -> None:
    """Postgres would leave out the rows without a word; the verifier asks it not to."""
    superuser(
        log_database,
        f"ALTER TABLE {SECOND} ENABLE ROW LEVEL SECURITY",
        f'CREATE POLICY hide ON {SECOND} TO plant_auditor USING ("offset" < {SIZE})',
    )
    with pytest.raises(LogUnreadable, match="row-level security"):
        found(log_database)


def test_another_table_of_its_name_is_not_read(log_database: Database, two_ranges: list[Row]) -> None:
    """Whatever search path is set for the role, the log that workers write is the one that is verified."""
    superuser(
        log_database,
        "CREATE SCHEMA shown",
        "CREATE TABLE shown.log_records AS SELECT * FROM log_records",
        "GRANT USAGE ON SCHEMA shown TO plant_auditor",
        "GRANT SELECT ON shown.log_records TO plant_auditor",
        f"ALTER ROLE plant_auditor IN DATABASE {log_database.name} SET search_path = shown, public",
        "UPDATE public.log_records SET key = 'x' WHERE \"offset\" = 4",
    )
    shown = 'SELECT key IS NULL FROM log_records WHERE "offset" = 4'
    assert sql.value(log_database.auditor_url, shown)
    ((offset, problem),) = found(log_database)
    assert (offset, "hash does not fit" in problem) == (4, True)


def test_a_table_of_its_name_in_the_catalogue_is_not_read(log_database: Database, two_ranges: list[Row]) -> None:
    """Postgres looks in pg_catalog first, whatever the search path says; the verifier names the schema."""
    superuser(
        log_database,
        "SET allow_system_table_mods = on",
        "CREATE TABLE pg_catalog.log_records AS SELECT * FROM public.log_records",
        "GRANT SELECT ON pg_catalog.log_records TO plant_auditor",
        "UPDATE public.log_records SET key = 'x' WHERE \"offset\" = 4",
    )
    assert sql.value(log_database.auditor_url, 'SELECT key IS NULL FROM log_records WHERE "offset" = 4')
    ((offset, problem),) = found(log_database)
    assert (offset, "hash does not fit" in problem) == (4, True)


def test_an_operator_of_somebody_else_is_not_used(log_database: Database) -> None:
    """One that fits the types of a column more closely than Postgres's own is preferred, where it is looked for."""
    rows = [log_rows.row("genesis.events", 0, offset, log_rows.onboarded(offset)) for offset in (3, 4)]
    rows.append(log_rows.row("genesis.events", 0, 5, log_rows.onboarded(3), disposition="repeat"))
    log_rows.store(log_database, log_rows.linked(rows))
    superuser(
        log_database,
        "UPDATE log_records SET disposition = 'poison', reason = 'forged' WHERE \"offset\" = 3",
        "CREATE FUNCTION public.alike(log_disposition, log_disposition) RETURNS boolean LANGUAGE sql RETURN true",
        "CREATE OPERATOR public.= (LEFTARG = log_disposition, RIGHTARG = log_disposition, FUNCTION = public.alike)",
    )
    ((offset, problem),) = found(log_database)
    assert (offset, "no earlier record" in problem) == (5, True)


VIEW = 'CREATE OR REPLACE VIEW {} AS SELECT {} FROM log_records WHERE "offset" <> 4'
EVENTS = """topic, partition, "offset", created_at, disposition, event_id,
    coalesce(key, convert_to(entity_id::text, 'UTF8')) AS key, value, headers, reason, control_offset"""
LINKS = """topic, partition, "offset", created_at, entity_type, entity_id, event_type,
    hash_before(topic, partition, "offset") AS previous_hash, hash"""
ALTERED = [
    ("event_stream", VIEW.format("event_stream", EVENTS)),
    ("event_stream", "ALTER VIEW event_stream RENAME TO log_before"),
    ("audit_log", VIEW.format("audit_log", LINKS)),
    ("hash_before", "ALTER FUNCTION hash_before(text, integer, bigint) SET search_path = other, public"),
    (
        "hash_before",
        "CREATE FUNCTION hash_before(text, integer, integer) RETURNS bytea LANGUAGE sql RETURN NULL::bytea",
    ),
]


@pytest.mark.parametrize(("name", "statement"), ALTERED)
def test_a_view_that_was_replaced_is_no_verdict(
    log_database: Database, two_ranges: list[Row], name: str, statement: str
) -> None:
    """The rows are good, and readers would see others: a record less, or other links."""
    superuser(log_database, statement)
    with pytest.raises(LogViewsAltered, match=f": {name}\\."):
        found(log_database)


@pytest.mark.parametrize("table", ["log_records", "log_ranges"])
def test_a_policy_that_hides_rows_of_others_is_no_verdict(
    log_database: Database, two_ranges: list[Row], table: str
) -> None:
    """Also for an auditor whom it hides nothing from."""
    superuser(log_database, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    with pytest.raises(LogViewsAltered, match=table):
        verify_chains(log_database.superuser_url, jobs=1)


def test_tables_whose_names_were_exchanged_are_found(log_database: Database, two_ranges: list[Row]) -> None:
    """Workers and the view of hashes go by the names, readers by the bounds."""
    names = ("genesis.events/0/0", "other"), (f"genesis.events/0/{SIZE}", "genesis.events/0/0")
    for name, other in (*names, ("other", f"genesis.events/0/{SIZE}")):
        superuser(log_database, f'ALTER TABLE log."{name}" RENAME TO "{other}"')
    ((offset, problem),) = found(log_database)
    assert (offset, "which is for other records" in problem) == (0, True)


def test_a_table_that_is_read_twice_is_found(log_database: Database, two_ranges: list[Row]) -> None:
    """Postgres refuses to attach it to a second partition; who writes its catalogue does not ask."""
    log_rows.store(log_database, log_rows.linked([log_rows.row("genesis.events", 1, 0, log_rows.onboarded(0))]))
    assert found(log_database) == []
    superuser(
        log_database,
        f"""INSERT INTO pg_inherits (inhrelid, inhparent, inhseqno, inhdetachpending)
        VALUES ('{SECOND}'::regclass, 'log."genesis.events/1"'::regclass, 2, false)""",
    )
    assert sql.value(log_database.auditor_url, "SELECT count(*) FROM event_stream") == 7
    ((offset, problem),) = found(log_database)
    assert (offset, "attached more than once" in problem) == (SIZE, True)


def test_a_repeat_without_an_event_id_is_found(log_database: Database) -> None:
    """A row that the table's constraint refuses, of a schema that the verifier does not know: no error, a finding."""
    value = b"\x00\x01\x02\x03\x04" + bytes(32)
    repeat = log_rows.poison("genesis.events", 0, 3, None, value)
    log_rows.store(log_database, log_rows.linked([repeat]))
    superuser(
        log_database,
        "ALTER TABLE log_records DROP CONSTRAINT log_records_event_id",
        "ALTER TABLE log_records DROP CONSTRAINT log_records_reason",
        "UPDATE log_records SET disposition = 'repeat'",
    )
    ((offset, problem),) = found(log_database)
    assert (offset, "event_id is empty" in problem) == (3, True)
