"""Migration 014: ingress reads keys, operators change them, and a revoked key stays revoked whoever asks."""

from __future__ import annotations

import asyncpg
import pytest

from database import migrate
from devstack import sql
from tests.conftest import Database
from tests.support.schema_shape import shape

V1A = (
    "INSERT INTO webhook_signatures (producer, scheme, public_key{columns})"
    " VALUES ('genesis', 'v1a', sha256('k'){values})"
)
REVOKED = V1A.format(columns=", revoked_at, expires_at", values=", now(), now() + interval '1 d'")
ENDING = V1A.format(columns=", expires_at", values=", now() + interval '1 d'")
CHECK_VALUE = "INSERT INTO master_keys (check_value) VALUES (sha256('{}'))"

RIGHTS = {
    "webhook_signatures": {
        "ingress": "SELECT",
        "operator": "SELECT INSERT UPDATE",
        "writer": "",
        "api": "",
        "auditor": "",
    },
    "producers": {
        "ingress": "SELECT",
        "operator": "SELECT INSERT UPDATE DELETE",
        "writer": "",
        "api": "",
        "auditor": "",
    },
    "master_keys": {"ingress": "SELECT", "operator": "SELECT INSERT UPDATE", "writer": "", "api": "", "auditor": ""},
    "checkpoints": {"ingress": "", "operator": "SELECT"},
    "model_checkpoints": {"ingress": "", "operator": "SELECT"},
    "partition_owners": {"ingress": "", "operator": "SELECT"},
    "event_stream": {"ingress": "", "operator": ""},
    "audit_log": {"ingress": "", "operator": ""},
    "outbox": {"ingress": "", "operator": ""},
    "webhook_deliveries": {"ingress": "", "operator": "SELECT"},
    "entities": {"ingress": "", "operator": ""},
}


@pytest.mark.parametrize(("table", "role"), [(table, role) for table, roles in RIGHTS.items() for role in roles])
def test_each_role_has_its_rights_and_no_more(database: Database, table: str, role: str) -> None:
    """Rights on some columns count too, so that none is lent by the back door."""
    columns = "SELECT has_any_column_privilege('plant_{}', '{}', '{}')"
    tables = "SELECT has_table_privilege('plant_{}', '{}', '{}')"
    asked = {"SELECT": columns, "INSERT": columns, "UPDATE": columns, "DELETE": tables, "TRUNCATE": tables}
    held = [right for right, ask in asked.items() if sql.value(database.owner_url, ask.format(role, table, right))]
    assert " ".join(held) == RIGHTS[table][role]


@pytest.mark.parametrize(
    "change",
    ["revoked_at = NULL", "revoked_at = now() + interval '1 h'", "expires_at = now()", "expires_at = NULL",
     "ciphertext = NULL, nonce = NULL, revoked_at = NULL", "producer = 'other'"],
)  # fmt: skip
@pytest.mark.parametrize("role", ["ingress", "operator", "api", "owner", "superuser"])
def test_a_revoked_key_stays_revoked(database: Database, role: str, change: str) -> None:
    """No role brings it back or changes a part of it, the owner and a superuser included."""
    sql.execute(database.owner_url, [REVOKED])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(getattr(database, f"{role}_url"), [f"UPDATE webhook_signatures SET {change}"])
    assert sql.value(database.owner_url, "SELECT count(*) FROM webhook_signatures WHERE revoked_at <= now()") == 1


@pytest.mark.parametrize("statement", ["DELETE FROM webhook_signatures", "TRUNCATE webhook_signatures"])
@pytest.mark.parametrize("role", ["ingress", "operator", "api", "owner", "superuser"])
def test_a_key_is_not_removed(database: Database, role: str, statement: str) -> None:
    """A public key that was revoked could come back as another row."""
    sql.execute(database.owner_url, [REVOKED])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(getattr(database, f"{role}_url"), [statement])
    assert sql.value(database.owner_url, "SELECT count(*) FROM webhook_signatures") == 1


def test_an_upsert_is_an_update(database: Database) -> None:
    """ON CONFLICT meets the same trigger."""
    sql.execute(database.owner_url, [REVOKED])
    upsert = REVOKED + " ON CONFLICT (public_key) DO UPDATE SET revoked_at = NULL"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(database.operator_url, [upsert])


@pytest.mark.parametrize("later", ["NULL", "now() + interval '2 d'", "'infinity'"])
def test_an_expiry_only_comes_nearer(database: Database, later: str) -> None:
    """An overlap that is over does not begin again."""
    sql.execute(database.owner_url, [ENDING])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(database.operator_url, [f"UPDATE webhook_signatures SET expires_at = {later}"])
    sql.execute(database.operator_url, ["UPDATE webhook_signatures SET expires_at = now() + interval '1 h'"])


def test_one_master_key_is_current(database: Database) -> None:
    """Two that are not retired can't stand side by side, and a check value is 32 bytes."""
    sql.execute(database.operator_url, [CHECK_VALUE.format("a")])
    with pytest.raises(asyncpg.UniqueViolationError):
        sql.execute(database.operator_url, [CHECK_VALUE.format("b")])
    sql.execute(database.operator_url, ["UPDATE master_keys SET retired_at = now()", CHECK_VALUE.format("b")])
    with pytest.raises(asyncpg.CheckViolationError):
        sql.execute(database.owner_url, ["INSERT INTO master_keys (check_value) VALUES ('\\x00')"])


def test_it_goes_down_and_up_with_rows_in_it(database: Database) -> None:
    """Down, keys stay as they were; up again, the schema is the one before."""
    url = database.owner_url
    once = shape(url)
    sql.execute(url, [REVOKED, CHECK_VALUE.format("a")])
    assert migrate.downgrade(url, "013") == ("013",)
    assert sql.value(url, "SELECT to_regclass('master_keys')") is None
    sql.execute(database.api_url, ["UPDATE webhook_signatures SET revoked_at = now()"])
    assert migrate.upgrade(url) == migrate.heads()
    assert shape(url) == once
    assert sql.value(url, "SELECT count(*) FROM webhook_signatures") == 1
