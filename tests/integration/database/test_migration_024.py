"""Migration 024: the API reads tokens, operators change them, and a revoked token stays revoked whoever asks."""

from __future__ import annotations

import asyncpg
import pytest

from database import migrate
from devstack import sql
from tests.conftest import Database
from tests.support.schema_shape import shape

TOKEN = (
    "INSERT INTO api_tokens (id, prefix, name, secret_hash, scopes, governance_agent_id{columns})"
    " VALUES (gen_random_uuid(), '0123456789ab', 'tests', sha256('k'), '{{read}}', '{tenant}'{values})"
)
GOOD = TOKEN.format(columns="", values="", tenant="genesis")
REVOKED = TOKEN.format(columns=", revoked_at", values=", now()", tenant="genesis")
ENDING = TOKEN.format(columns=", expires_at", values=", now() + interval '1 d'", tenant="genesis")


@pytest.mark.parametrize("role", ["writer", "ingress", "operator", "api", "auditor"])
def test_each_role_has_its_rights_and_no_more(database: Database, role: str) -> None:
    """Rights on some columns count too."""
    columns = "SELECT has_any_column_privilege('plant_{}', 'api_tokens', '{}')"
    tables = "SELECT has_table_privilege('plant_{}', 'api_tokens', '{}')"
    asked = {"SELECT": columns, "INSERT": columns, "UPDATE": columns, "DELETE": tables, "TRUNCATE": tables}
    held = [right for right, ask in asked.items() if sql.value(database.owner_url, ask.format(role, right))]
    assert held == {"api": ["SELECT"], "operator": ["SELECT", "INSERT", "UPDATE"]}.get(role, [])


@pytest.mark.parametrize("change", ["revoked_at = NULL", "revoked_at = now() + interval '1 h'", "expires_at = now()"])
@pytest.mark.parametrize("role", ["operator", "api", "owner", "superuser"])
def test_a_revoked_token_stays_revoked(database: Database, role: str, change: str) -> None:
    """No role brings it back, the owner and a superuser included."""
    sql.execute(database.owner_url, [REVOKED])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(getattr(database, f"{role}_url"), [f"UPDATE api_tokens SET {change}"])
    assert sql.value(database.owner_url, "SELECT count(*) FROM api_tokens WHERE revoked_at <= now()") == 1


@pytest.mark.parametrize("change", ["scopes = '{read,more}'", "secret_hash = sha256('x')", "name = 'other'"])
@pytest.mark.parametrize("role", ["operator", "owner", "superuser"])
def test_what_a_token_may_read_never_changes(database: Database, role: str, change: str) -> None:
    """Neither its scopes nor its hash: another token is made for that."""
    sql.execute(database.owner_url, [GOOD])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(getattr(database, f"{role}_url"), [f"UPDATE api_tokens SET {change}"])


@pytest.mark.parametrize("later", ["NULL", "now() + interval '2 d'", "'infinity'"])
def test_the_expiry_of_a_token_only_comes_nearer(database: Database, later: str) -> None:
    """A token that has ended does not begin again."""
    sql.execute(database.owner_url, [ENDING])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(database.operator_url, [f"UPDATE api_tokens SET expires_at = {later}"])
    sql.execute(database.operator_url, ["UPDATE api_tokens SET expires_at = now() + interval '1 h'"])


@pytest.mark.parametrize("statement", ["DELETE FROM api_tokens", "TRUNCATE api_tokens"])
@pytest.mark.parametrize("role", ["operator", "api", "owner", "superuser"])
def test_a_token_is_not_removed(database: Database, role: str, statement: str) -> None:
    """Who had which token can be told afterwards."""
    sql.execute(database.owner_url, [REVOKED])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        sql.execute(getattr(database, f"{role}_url"), [statement])
    assert sql.value(database.owner_url, "SELECT count(*) FROM api_tokens") == 1


def test_a_token_of_another_tenant_is_refused(database: Database) -> None:
    """By the table, whatever the command does."""
    with pytest.raises(asyncpg.CheckViolationError):
        sql.execute(database.operator_url, [TOKEN.format(columns="", values="", tenant="acme")])


def test_it_goes_down_and_up_again(database: Database) -> None:
    """Up again, the schema is the one before."""
    before = shape(database.owner_url)
    migrate.downgrade(database.owner_url, "023")
    migrate.upgrade(database.owner_url)
    assert shape(database.owner_url) == before
