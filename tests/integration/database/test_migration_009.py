"""Migration 009: producers, public keys, the rights of each role, and who was there before."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy import text

from database import migrate
from database.connector import connect
from devstack import sql
from runtime.settings import Settings
from tests.conftest import Database
from tests.support import log_rows
from tests.support.schema_shape import shape

V1 = "substr(sha256('n'), 1, 12), sha256('c'), NULL"
V1A = "NULL, NULL, sha256('p')"
NAMED = "INSERT INTO producers (name) VALUES ('genesis')"
INSERT = "INSERT INTO webhook_signatures (producer, scheme, nonce, ciphertext, public_key) VALUES ('genesis', {})"


@pytest.mark.parametrize("values", [f"'v1', {V1}", f"'v1a', {V1A}"])
def test_a_key_of_either_scheme_is_taken_with_what_belongs_to_it(database: Database, values: str) -> None:
    """A secret for v1, a public key for v1a; plant_operator may write both."""
    sql.execute(database.operator_url, [INSERT.format(values)])
    assert sql.value(database.operator_url, "SELECT count(*) FROM webhook_signatures") == 1


@pytest.mark.parametrize(
    "values",
    [
        f"'v1', {V1A}",
        f"'v1a', {V1}",
        "'v1', substr(sha256('n'), 1, 12), sha256('c'), sha256('p')",
        "'v1a', substr(sha256('n'), 1, 12), NULL, sha256('p')",
        "'v1', NULL, sha256('c'), NULL",
        "'v1', substr(sha256('n'), 1, 12), NULL, NULL",
        "'v1', NULL, NULL, NULL",
        "'v1a', NULL, NULL, NULL",
        "'v1a', NULL, NULL, substr(sha256('p'), 1, 31)",
        "'v1a', NULL, NULL, sha512('p')",
        "'v2', NULL, NULL, sha256('p')",
    ],
)
def test_a_key_with_anything_else_is_refused(database: Database, values: str) -> None:
    """Nothing is missing, nothing is too much, and a public key has 32 bytes."""
    with pytest.raises(asyncpg.CheckViolationError):
        sql.execute(database.owner_url, [INSERT.format(values)])


def test_a_public_key_is_there_once(database: Database) -> None:
    """The second row with it is refused, whoever's it is and whether or not the first was revoked."""
    sql.execute(
        database.owner_url, [INSERT.format(f"'v1a', {V1A}"), "UPDATE webhook_signatures SET revoked_at = now()"]
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        sql.execute(database.owner_url, [INSERT.format(f"'v1a', {V1A}").replace("genesis", "other")])


@pytest.mark.parametrize(
    "values",
    [
        "'Genesis', NULL, NULL, NULL",
        "'', NULL, NULL, NULL",
        "'genesis', '{}', NULL, NULL",
        "'genesis', ARRAY['a', NULL], NULL, NULL",
        "'genesis', NULL, 0, NULL",
        "'genesis', NULL, -1, NULL",
        "'genesis', NULL, 'NaN', NULL",
        "'genesis', NULL, 'Infinity', NULL",
        "'genesis', NULL, NULL, 0",
    ],
)
def test_a_producer_that_can_not_be_is_refused(database: Database, values: str) -> None:
    """Names as keys have them; no empty list of types, no null in one; rates and bursts that can be counted with."""
    with pytest.raises(asyncpg.CheckViolationError):
        sql.execute(
            database.owner_url, [f"INSERT INTO producers (name, event_types, rate_per_second, burst) VALUES ({values})"]
        )


@pytest.mark.parametrize("role", ["writer", "ingress", "operator", "api", "auditor"])
def test_each_role_has_its_rights_on_producers_and_no_more(database: Database, role: str) -> None:
    """plant_operator writes all but names and times of making, plant_ingress reads; no other role has any right."""
    ask = "SELECT has_any_column_privilege('plant_{}', 'producers', '{}')"
    every = ("SELECT", "INSERT", "UPDATE", "REFERENCES")
    held = [right for right in every if sql.value(database.owner_url, ask.format(role, right))]
    assert held == {"operator": ["SELECT", "INSERT", "UPDATE"], "ingress": ["SELECT"]}.get(role, [])
    for right in ("TRUNCATE", "TRIGGER", "INSERT", "UPDATE"):
        whole = f"SELECT has_table_privilege('plant_{role}', 'producers', '{right}')"
        assert sql.value(database.owner_url, whole) is False


def test_an_operator_changes_neither_names_nor_public_keys(database: Database) -> None:
    """A producer keeps its name and its day, a key its public half."""
    sql.execute(database.operator_url, [INSERT.format(f"'v1a', {V1A}"), NAMED])
    for table, column in (("producers", "name"), ("producers", "created_at"), ("webhook_signatures", "public_key")):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            sql.execute(database.operator_url, [f"UPDATE {table} SET {column} = {column}"])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(database.operator_url, ["DELETE FROM webhook_signatures"])


async def test_a_process_of_before_reads_on(database: Database, settings: Settings) -> None:
    """The statement that it reads keys with finds the v1 keys as they were, and none of the others."""
    sql.execute(database.owner_url, [INSERT.format(f"'v1', {V1}"), INSERT.format(f"'v1a', {V1A}")])
    before = text("""
        SELECT id, producer, nonce, ciphertext, not_before, expires_at FROM webhook_signatures
        WHERE scheme = 'v1' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
        ORDER BY created_at DESC, id
    """)
    operator = connect(settings, "operator")
    async with operator.transaction() as connection:
        rows = list((await connection.execute(before)).mappings())
    await operator.close()
    assert [(row["producer"], len(row["nonce"]), len(row["ciphertext"])) for row in rows] == [("genesis", 12, 32)]


def test_it_goes_down_and_up_with_rows_in_it(database: Database) -> None:
    """Down, the v1 keys stay as they were and what has no place is gone; up again, the schema is the one before."""
    url = database.owner_url
    once = shape(url)
    sql.execute(
        url,
        [INSERT.format(f"'v1', {V1}"), INSERT.format(f"'v1a', {V1A}"), "INSERT INTO producers (name) VALUES ('p')"],
    )
    assert migrate.downgrade(url, "008") == ("008",)
    assert sql.value(url, "SELECT string_agg(scheme, ',') FROM webhook_signatures") == "v1"
    assert sql.value(url, "SELECT to_regclass('producers')") is None
    with pytest.raises(asyncpg.NotNullViolationError):
        sql.execute(
            url, ["INSERT INTO webhook_signatures (producer, scheme, ciphertext) VALUES ('p', 'v1', sha256('c'))"]
        )
    assert migrate.upgrade(url) == migrate.heads()
    assert shape(url) == once
    assert sql.value(url, "SELECT count(*) FROM webhook_signatures") == 1


def test_log_rows_are_not_touched(database: Database) -> None:
    """The migration waits for nobody who writes the log: a session that holds those tables does not stop it."""
    url = database.owner_url
    migrate.downgrade(url, "008")

    async def while_held(connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            await connection.execute("LOCK TABLE event_stream, audit_log, checkpoints IN EXCLUSIVE MODE")
            assert migrate.upgrade(url, "009") == ("009",)

    log_rows.on_connection(database.superuser_url, while_held)
