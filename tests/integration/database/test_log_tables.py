"""The log's tables as migration 017 makes them: append-only at every level, each role's rights, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest

from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.made_ranges import NEXT, PARENT, PARTITION, RANGE, RECORD, SIZE, TABLES, VIEWS, insert, make_ranges
from tests.support.services import Services

SERVICES = ("writer", "ingress", "operator", "api", "auditor", "embedder", "deliverer", "endpoints")


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


def test_a_record_is_appended_to_its_range_alone(database: Database) -> None:
    """By the writer, with topic and partition as defaults of the range; it is read at every level and in both views."""
    insert(database)
    for table in (PARTITION, PARENT):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            insert(database, table, offset_="9")
    row = {name: value for name, value in RECORD.items() if name not in ("topic", "partition", '"offset"')}
    columns, values = ", ".join(row), ", ".join(row.values())
    sql.execute(database.writer_url, [f'INSERT INTO {RANGE} ("offset", {columns}) VALUES (8, {values})'])
    for table in (*TABLES, *VIEWS):
        assert sql.value(database.auditor_url, f'SELECT array_agg("offset" ORDER BY 1) FROM {table}') == [7, 8]


@pytest.mark.parametrize("table", [*TABLES, *VIEWS])
@pytest.mark.parametrize("role", ["owner", "superuser", *SERVICES])
def test_nobody_changes_the_log(database: Database, table: str, role: str) -> None:
    """UPDATE, DELETE and TRUNCATE are refused at every level and through the views, to owner and superuser too."""
    insert(database)
    for statement in (f'UPDATE {table} SET "offset" = 9', f"DELETE FROM {table}", f"TRUNCATE {table}"):
        refusals: tuple[type[Exception], ...] = (asyncpg.InsufficientPrivilegeError,)
        if table in VIEWS:  # a view is not truncated, and some columns of a view can't be changed
            refusals += (asyncpg.WrongObjectTypeError, asyncpg.ObjectNotInPrerequisiteStateError)
        with pytest.raises(refusals):
            sql.execute(getattr(database, f"{role}_url"), [statement])
    assert sql.value(database.auditor_url, 'SELECT array_agg("offset") FROM log_records') == [7]


@pytest.mark.parametrize("table", TABLES)
def test_a_refusal_says_what_was_refused(database: Database, table: str) -> None:
    """Through whichever table it is tried, the trigger names the table and hints at a way."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="is append-only: DELETE refused") as error:
        sql.execute(database.owner_url, [f"DELETE FROM {table}"])
    assert "correcting event" in str(error.value)


@pytest.mark.parametrize("role", SERVICES)
def test_no_service_takes_a_table_away(database: Database, role: str) -> None:
    """DROP, DETACH, ATTACH, ALTER, CREATE, triggers and indexes are refused to every service: it owns none of them."""
    insert(database)
    statements = [
        *(f"DROP TABLE {table}" for table in TABLES),
        *(f"DROP VIEW {view}" for view in VIEWS),
        f"ALTER TABLE {PARTITION} DETACH PARTITION {RANGE}",
        f"ALTER TABLE {PARENT} DETACH PARTITION {PARTITION} CONCURRENTLY",
        *(f"ALTER TABLE {table} DISABLE TRIGGER append_only" for table in TABLES),
        *(f"ALTER TABLE {table} ALTER COLUMN hash DROP NOT NULL" for table in TABLES),
        *(f"ALTER TABLE {table} OWNER TO plant_{role}" for table in TABLES),
        f"DROP TRIGGER append_only ON {RANGE}",
        f"CREATE TRIGGER more BEFORE INSERT ON {RANGE} FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        f'CREATE INDEX ON {RANGE} ("offset")',
        f"CREATE TABLE log.mine (LIKE {PARENT})",
        f"CREATE RULE gone AS ON DELETE TO {RANGE} DO INSTEAD NOTHING",
        "DROP SCHEMA log CASCADE",
        "SET session_replication_role = replica",
        "INSERT INTO log_ranges VALUES ('t', 0, 0, 'x')",
        "UPDATE log_ranges SET closed_at = now()",
        "DELETE FROM log_ranges",
        "SELECT add_log_range('t', 0, 0)",
        "SELECT guard_log_table('t.events/0/0')",
    ]
    for statement in statements:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql.execute(getattr(database, f"{role}_url"), [statement])


RIGHTS = {
    PARENT: {"writer": "SELECT", "auditor": "SELECT"},
    PARTITION: {"writer": "SELECT", "auditor": "SELECT"},
    RANGE: {"writer": "SELECT INSERT", "auditor": "SELECT"},
    "event_stream": {"writer": "SELECT", "auditor": "SELECT"},
    "audit_log": {"writer": "SELECT", "auditor": "SELECT"},
    "log_ranges": {"writer": "SELECT", "api": "SELECT", "auditor": "SELECT"},
}


@pytest.mark.parametrize("table", RIGHTS)
@pytest.mark.parametrize("role", SERVICES)
def test_each_role_has_its_rights_and_no_more(database: Database, table: str, role: str) -> None:
    """Level by level, exactly the rights that the role's work needs."""
    every = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    ask = "SELECT has_table_privilege('plant_{}', {}, '{}')"
    held = [right for right in every if sql.value(database.owner_url, ask.format(role, sql.literal(table), right))]
    assert " ".join(held) == RIGHTS[table].get(role, "")


def test_the_api_reads_where_records_are_and_not_what_they_say(database: Database) -> None:
    """By the views, with the columns that it was granted on the tables of before; the tables are closed to it."""
    insert(database, event_type="'genesis.agent.rated'")
    query = 'SELECT topic, partition, "offset", disposition::text, event_id IS NOT NULL FROM event_stream'
    assert sql.value(database.api_url, f"SELECT row_to_json(e)::text FROM ({query}) AS e") is not None
    hashes = "SELECT previous_hash = decode(repeat('00', 32), 'hex') AND hash = sha256('h') FROM audit_log"
    assert sql.value(database.api_url, hashes)
    closed = [("event_stream", name) for name in ("key", "value", "headers", "reason")]
    closed += [("audit_log", name) for name in ("entity_id", "entity_type")]
    closed += [(table, '"offset"') for table in TABLES]
    for table, column in closed:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql.value(database.api_url, f"SELECT {column} FROM {table}")


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        (PARTITION, {"partition": "1"}),
        (RANGE, {"partition": "1"}),
        (RANGE, {"topic": "'u.events'"}),
        (PARTITION, {"topic": "'u.events'"}),
        (RANGE, {"offset_": str(SIZE)}),
        (NEXT, {"offset_": str(SIZE - 1)}),
        (PARTITION, {"offset_": str(2 * SIZE)}),
        (RANGE, {"hash": "sha512('x')"}),
        (RANGE, {"hash": "''"}),
        (RANGE, {"offset_": "-1"}),
        (RANGE, {"disposition": "'poison'"}),
        (RANGE, {"reason": "'a reason'"}),
        (RANGE, {"control_offset": "3"}),
        (RANGE, {"control_offset": "-1", "disposition": "'control'"}),
        *((RANGE, {"event_id": "NULL", "disposition": f"'{name}'"}) for name in ("applied", "repeat", "parked")),
    ],
    ids=str,
)
def test_what_can_not_be_is_refused(database: Database, table: str, changes: dict[str, str]) -> None:
    """A record of another partition, topic or range, and each that breaks a CHECK; to the owner too."""
    url = database.owner_url if table == PARTITION else ""
    with pytest.raises(asyncpg.CheckViolationError):
        insert(database, table, url=url, **changes)


@pytest.mark.parametrize("column", ["topic", "partition", '"offset"', "created_at", "disposition", "hash", "headers"])
def test_columns_that_are_needed_can_not_be_null(database: Database, column: str) -> None:
    """NOT NULL holds in a range as in the parent; topic and partition are the partition's."""
    with pytest.raises((asyncpg.NotNullViolationError, asyncpg.CheckViolationError)):
        insert(database, **{"offset_" if column == '"offset"' else column: "NULL"})


def test_words_that_the_log_does_not_know_are_refused(database: Database) -> None:
    """Disposition, entity type and event type are enums."""
    for column in ("disposition", "entity_type", "event_type"):
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            insert(database, **{column: "'lost'"})


@pytest.mark.parametrize("disposition", ["poison", "control"])
def test_records_without_an_event_may_be_logged(database: Database, disposition: str) -> None:
    """What can't be decoded has no event id, key or value; a control record may name an offset."""
    more = {"reason": "'why'"} if disposition == "poison" else {"control_offset": "3"}
    insert(database, disposition=f"'{disposition}'", event_id="NULL", **more)


def test_an_offset_is_taken_once(database: Database) -> None:
    """The range's primary key refuses a second record of an offset."""
    insert(database)
    with pytest.raises(asyncpg.UniqueViolationError, match=r"t\.events/0/0_pkey"):
        insert(database)


@pytest.mark.parametrize("key", ["NULL", r"'\x'", "'another'"])
def test_a_key_is_shown_as_it_was(database: Database, key: str) -> None:
    """Null without an entity, the entity's id where none is stored, and otherwise what is stored."""
    insert(database, key=key, offset_="1")
    insert(database, key="NULL", entity_id="'00000000-0000-0000-0000-0000000000AB'", offset_="2")
    assert sql.value(
        database.auditor_url, f'SELECT key IS NOT DISTINCT FROM {key} FROM event_stream WHERE "offset" = 1'
    )
    shown = sql.value(database.auditor_url, 'SELECT key FROM event_stream WHERE "offset" = 2')
    assert shown == b"00000000-0000-0000-0000-0000000000ab"


def test_previous_hashes_are_those_of_the_record_before(database: Database) -> None:
    """Across gaps and ranges, and not of another partition; the first has zeros."""
    for number, (table, partition) in enumerate(
        [(RANGE, 0), (RANGE, 0), (NEXT, 0), (NEXT, 0), ('log."t.events/1/0"', 1)]
    ):
        offset = (3, 9, SIZE + 5, SIZE + 6, 12)[number]
        insert(database, table, partition=str(partition), offset_=str(offset), hash=f"sha256('{number}')")
    query = """SELECT array_agg(previous_hash ORDER BY partition, "offset") FROM audit_log"""
    hashes = [sql.value(database.owner_url, f"SELECT sha256('{number}')") for number in range(4)]
    assert sql.value(database.auditor_url, query) == [bytes(32), *hashes[:3], bytes(32)]
