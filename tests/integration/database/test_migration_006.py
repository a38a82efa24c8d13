"""Migration 006 and what followed up to 016: tables, constraints, rights of each role, the way down and up again.

The log was two tables until then; `test_log_ranges.py` has those that came after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from database import migrate
from devstack import sql
from tests.conftest import Database
from tests.support import log_rows
from tests.support.schema_shape import shape
from tests.support.services import Services

STREAM: dict[str, Any] = {
    "topic": "'t'",
    "partition": "0",
    '"offset"': "0",
    "created_at": "now()",
    "disposition": "'applied'",
    "event_id": "gen_random_uuid()",
    "headers": r"'\x00000000'",
}
AUDIT: dict[str, Any] = {
    "topic": "'t'",
    "partition": "0",
    '"offset"': "0",
    "created_at": "now()",
    "previous_hash": "sha256('a')",
    "hash": "sha256('b')",
}
OWNER: dict[str, Any] = {
    "topic": "'t'",
    "partition": "0",
    "token": "1",
    "worker": "'w'",
    "backend_pid": "1",
    "backend_started_at": "now()",
}
CHECKPOINT: dict[str, Any] = {
    "projection": "'log'",
    "version": "0",
    "topic": "'t'",
    "partition": "0",
    "next_offset": "0",
}
SIGNATURE: dict[str, Any] = {
    "producer": "'genesis'",
    "scheme": "'v1'",
    "nonce": "substr(sha256('n'), 1, 12)",
    "ciphertext": "sha256('c')",
}
DELIVERY: dict[str, Any] = {
    "id": "gen_random_uuid()",
    "endpoint_id": "gen_random_uuid()",
    "topic": "'t'",
    "partition": "0",
    '"offset"': "0",
    "event_id": "gen_random_uuid()",
}
ROWS = {
    "event_stream": STREAM,
    "audit_log": AUDIT,
    "partition_owners": OWNER,
    "checkpoints": CHECKPOINT,
    "webhook_signatures": SIGNATURE,
    "webhook_deliveries": DELIVERY,
}


@pytest.fixture(scope="module")
def shared_database(stack: Services, template_database: str) -> Iterator[Database]:
    """One database for this module, at revision 016."""
    with log_rows.migrated_database(stack, template_database) as made:
        assert migrate.downgrade(made.owner_url, "016") == ("016",)
        yield made


@pytest.fixture
def database(shared_database: Database) -> Database:
    """The module's database, every table of migration 006 empty."""
    statements = ["SET session_replication_role = replica", f"TRUNCATE {', '.join(ROWS)}"]
    sql.execute(shared_database.superuser_url, statements)
    return shared_database


def insert(database: Database, table: str, *, url: str = "", **changes: str) -> None:
    """Insert a good row with some columns changed; `offset_` stands for the column "offset"."""
    row = {**ROWS[table], **{'"offset"' if name == "offset_" else name: value for name, value in changes.items()}}
    statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
    sql.execute(url or database.owner_url, [statement])


@pytest.mark.parametrize("table", ROWS)
def test_a_good_row_is_taken_by_every_table(database: Database, table: str) -> None:
    """The rows that the other tests make invalid are valid as they are."""
    insert(database, table)
    assert sql.value(database.owner_url, f"SELECT count(*) FROM {table}") == 1


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("event_stream", {"partition": "-1"}),
        ("event_stream", {"offset_": "-1"}),
        ("event_stream", {"disposition": "'lost'"}),
        ("event_stream", {"disposition": "'poison'"}),
        ("event_stream", {"reason": "'a reason'"}),
        ("event_stream", {"event_id": "NULL"}),
        ("event_stream", {"event_id": "NULL", "disposition": "'repeat'"}),
        ("event_stream", {"event_id": "NULL", "disposition": "'parked'"}),
        ("audit_log", {"partition": "-1"}),
        ("audit_log", {"offset_": "-1"}),
        ("audit_log", {"previous_hash": "''"}),
        ("audit_log", {"hash": r"'\x00'"}),
        ("audit_log", {"hash": "sha512('x')"}),
        ("partition_owners", {"partition": "-1"}),
        ("partition_owners", {"token": "0"}),
        ("checkpoints", {"partition": "-1"}),
        ("checkpoints", {"next_offset": "-1"}),
        ("webhook_signatures", {"producer": "'Genesis'"}),
        ("webhook_signatures", {"producer": "''"}),
        ("webhook_signatures", {"producer": "repeat('a', 64)"}),
        ("webhook_signatures", {"producer": r"E'genesis\n'"}),
        ("webhook_signatures", {"scheme": "'v2'"}),
        ("webhook_signatures", {"nonce": "sha256('n')"}),
        ("webhook_signatures", {"ciphertext": "substr(sha256('c'), 1, 16)"}),
        ("webhook_signatures", {"ciphertext": "decode(repeat('00', 1025), 'hex')"}),
        ("webhook_signatures", {"expires_at": "now()"}),
        ("webhook_deliveries", {"partition": "-1"}),
        ("webhook_deliveries", {"offset_": "-1"}),
        ("webhook_deliveries", {"state": "'lost'"}),
        ("webhook_deliveries", {"attempts": "-1"}),
        ("webhook_deliveries", {"last_status": "99"}),
        ("webhook_deliveries", {"last_status": "600"}),
        ("webhook_deliveries", {"state": "'delivered'", "next_attempt_at": "now()"}),
    ],
    ids=str,
)
def test_checks_refuse_what_can_not_be(database: Database, table: str, changes: dict[str, str]) -> None:
    """Each CHECK refuses a row that breaks it."""
    with pytest.raises(asyncpg.CheckViolationError):
        insert(database, table, **changes)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(
            ("event_stream", name)
            for name in ("topic", "partition", '"offset"', "created_at", "disposition", "headers")
        ),
        *(("audit_log", name) for name in ("topic", "partition", '"offset"', "created_at", "previous_hash", "hash")),
        *(("partition_owners", name) for name in OWNER),
        *(("checkpoints", name) for name in CHECKPOINT),
        *(("webhook_signatures", name) for name in ("producer", "scheme")),
        *(("webhook_deliveries", name) for name in DELIVERY),
    ],
)
def test_columns_that_are_needed_can_not_be_null(database: Database, table: str, column: str) -> None:
    """NOT NULL holds for every column without which a row means nothing."""
    with pytest.raises(asyncpg.NotNullViolationError):
        insert(database, table, **{"offset_" if column == '"offset"' else column: "NULL"})


@pytest.mark.parametrize("disposition", ["poison", "control"])
def test_records_without_an_event_may_be_logged(database: Database, disposition: str) -> None:
    """What can't be decoded has no event id, key or value, and is logged all the same."""
    reason = "'why'" if disposition == "poison" else "NULL"
    insert(database, "event_stream", disposition=f"'{disposition}'", event_id="NULL", reason=reason)


@pytest.mark.parametrize("table", ["event_stream", "audit_log", "partition_owners", "checkpoints"])
def test_a_place_is_taken_once(database: Database, table: str) -> None:
    """The primary key is the record position: a second row for it is refused, one for the next offset is not."""
    insert(database, table)
    with pytest.raises(asyncpg.UniqueViolationError, match=f"{table}_pkey"):
        insert(database, table, **({"event_id": "gen_random_uuid()"} if table == "event_stream" else {}))
    insert(database, table, partition="1")


def test_an_event_is_applied_once_a_partition(database: Database) -> None:
    """The same event id can't be applied twice in a partition; as a repeat, or in another partition, it can be."""
    same = f"'{uuid4()}'"
    insert(database, "event_stream", event_id=same)
    with pytest.raises(asyncpg.UniqueViolationError, match="event_stream_applied_once"):
        insert(database, "event_stream", event_id=same, offset_="1")
    insert(database, "event_stream", event_id=same, offset_="1", disposition="'repeat'")
    insert(database, "event_stream", event_id=same, partition="1")
    insert(database, "event_stream", event_id=same, topic="'u'")


@pytest.mark.parametrize(("token", "next_offset"), [(2, 7), (1, 6), (1, 8)])
def test_a_partition_is_locked_with_its_token_and_its_checkpoint(
    database: Database, token: int, next_offset: int
) -> None:
    """Another token or another checkpoint is refused, with a code of its own; the right pair is not."""
    insert(database, "partition_owners")
    insert(database, "checkpoints", next_offset="7")
    sql.value(database.writer_url, "SELECT hold_partition('t', 0, 1, 7)")
    with pytest.raises(asyncpg.PostgresError) as refused:
        sql.value(database.writer_url, f"SELECT hold_partition('t', 0, {token}, {next_offset})")
    assert refused.value.sqlstate == "PL001"


def test_an_event_goes_to_an_endpoint_once(database: Database) -> None:
    """One delivery an endpoint and event, whatever its id."""
    same = {"endpoint_id": f"'{uuid4()}'", "event_id": f"'{uuid4()}'"}
    insert(database, "webhook_deliveries", **same)
    with pytest.raises(asyncpg.UniqueViolationError, match="endpoint_id_event_id"):
        insert(database, "webhook_deliveries", **same)


def test_a_key_has_a_start_and_no_end_unless_told(database: Database) -> None:
    """A webhook key is good from now on; its id and its times are made by the database."""
    insert(database, "webhook_signatures")
    query = "SELECT id IS NOT NULL AND not_before <= now() AND expires_at IS NULL AND revoked_at IS NULL"
    assert sql.value(database.owner_url, f"{query} FROM webhook_signatures")


RIGHTS = {
    "event_stream": {"writer": "SELECT INSERT", "api": "", "auditor": "SELECT"},  # 008 leaves the API some columns
    "audit_log": {"writer": "SELECT INSERT", "api": "", "auditor": "SELECT"},
    "partition_owners": {"writer": "SELECT INSERT UPDATE", "api": "SELECT", "auditor": "SELECT"},
    "checkpoints": {"writer": "SELECT INSERT UPDATE", "api": "SELECT", "auditor": "SELECT"},
    "webhook_deliveries": {"writer": "SELECT INSERT UPDATE", "api": "SELECT", "auditor": ""},
    "webhook_signatures": {"writer": "", "api": "", "auditor": ""},  # 014 has roles of their own for keys
    "alembic_version": {"writer": "SELECT", "api": "SELECT", "auditor": "SELECT"},
}


@pytest.mark.parametrize("table", RIGHTS)
@pytest.mark.parametrize("role", ["writer", "api", "auditor"])
def test_each_role_has_its_rights_and_no_more(database: Database, table: str, role: str) -> None:
    """Table by table, exactly the rights that the role's work needs; TRUNCATE and TRIGGER are nobody's."""
    every = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    ask = "SELECT has_table_privilege('plant_{}', '{}', '{}')"
    held = [right for right in every if sql.value(database.owner_url, ask.format(role, table, right))]
    assert " ".join(held) == RIGHTS[table][role]


def test_a_key_can_be_ended_but_not_changed_by_an_operator(database: Database) -> None:
    """`plant_operator` may revoke a key or let it expire; its owner, its scheme and its start stay."""
    insert(database, "webhook_signatures")
    sql.execute(
        database.operator_url, ["UPDATE webhook_signatures SET revoked_at = now(), expires_at = now() + interval '1 d'"]
    )
    for column in ("id", "producer", "scheme", "created_at", "not_before"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql.execute(database.operator_url, [f"UPDATE webhook_signatures SET {column} = {column}"])


def test_the_public_has_no_rights(database: Database) -> None:
    """No table of the migration is open to roles that nobody thought of."""
    query = "SELECT count(*) FROM information_schema.table_privileges WHERE grantee = 'PUBLIC' AND table_name = '{}'"
    assert [sql.value(database.owner_url, query.format(table)) for table in ROWS] == [0] * len(ROWS)


@pytest.fixture
def bare_database(stack: Services) -> Iterator[Database]:
    """A database that was never migrated."""
    with log_rows.unmigrated(stack, extension=False) as made:
        yield made


def up_down_up(database: Database) -> None:
    """Migrate up, down and up; the schema afterwards is the one before, and in between there is none."""
    assert migrate.upgrade(database.owner_url, "006") == ("006",)
    once = shape(database.owner_url)
    assert any("event_stream_applied_once" in line for line in once)
    assert migrate.downgrade(database.owner_url, "event_log@base") == ()
    tables = (
        "SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )
    assert sql.value(database.owner_url, tables) == "alembic_version"
    assert sql.value(database.owner_url, "SELECT to_regproc('refuse_change')") is None
    assert sql.value(database.owner_url, "SELECT to_regproc('hold_partition')") is None
    assert migrate.upgrade(database.owner_url, "006") == ("006",)
    assert shape(database.owner_url) == once


def test_down_and_up_again_gives_the_same_schema(bare_database: Database) -> None:
    """Nothing of the migration is left after its downgrade, and nothing differs after it runs again."""
    up_down_up(bare_database)
