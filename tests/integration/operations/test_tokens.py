"""`plant tokens`: recorded first, then done; a token is shown once, and only its hash is kept."""

from __future__ import annotations

import json

import msgspec
from sqlalchemy import text

from api.access_tokens import read_token
from database.connector import connect
from runtime.settings import Settings
from streams.topics import apply
from tests.support.command_line import operations, plant


def listed(settings: Settings) -> list[dict[str, object]]:
    tokens: list[dict[str, object]] = json.loads(plant(settings, "tokens", "list", "--output", "json").stdout)
    return tokens


async def test_a_token_is_recorded_then_made_and_shown_once(settings: Settings) -> None:
    """stdout is the token alone; the operator action names its scopes; the row holds a hash and no secret."""
    await apply(settings)
    made = plant(
        settings, "tokens", "add", "dashboard", "--scope", "read:skills", "--scope", "read:agents", "--expires", "90d",
        "--actor", "ops", "--reason", "a screen",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    read = read_token(token)
    assert read is not None
    prefix, secret_hash = read
    (row,) = listed(settings)
    assert (row["name"], row["prefix"], row["state"], row["tenant"]) == ("dashboard", prefix, "active", "genesis")
    assert row["scopes"] == ["read:agents", "read:skills"]
    (action,) = await operations(settings, f"dashboard/{prefix}")
    assert (action.actor, action.action) == ("ops", "tokens.add")
    assert action.reason.startswith("a screen [scopes read:agents read:skills; tenant genesis; expires ")
    database = connect(settings, "operator")
    async with database.transaction() as connection:
        stored = (await connection.execute(text("SELECT secret_hash, to_jsonb(t)::text FROM api_tokens AS t"))).one()
    await database.close()
    assert stored[0] == secret_hash
    secret = token.rpartition(f"{prefix}_")[2]
    assert secret not in stored[1]
    for output in ("table", "json", "jsonl"):
        assert secret not in plant(settings, "tokens", "list", "--output", output).stdout


async def test_revoking_needs_execute_and_is_recorded(settings: Settings) -> None:
    """Without --execute only the plan is printed; with it the action is recorded and done; again changes nothing."""
    await apply(settings)
    made = json.loads(plant(settings, "tokens", "add", "dashboard", "--output", "json").stdout)
    prefix = made["prefix"]
    assert "would revoke" in plant(settings, "tokens", "revoke", prefix).stderr
    assert [row["state"] for row in listed(settings)] == ["active"]
    assert "revoked token" in plant(settings, "tokens", "revoke", f"plant_{prefix}", "--execute").stderr
    assert [row["state"] for row in listed(settings)] == ["revoked"]
    assert "nothing to do" in plant(settings, "tokens", "revoke", prefix, "--execute").stderr
    actions = [action.action for action in await operations(settings, f"dashboard/{prefix}")]
    assert actions == ["tokens.add", "tokens.revoke"]
    whole = plant(settings, "tokens", "revoke", made["token"], "--execute")
    assert whole.returncode == 2
    assert made["token"] not in whole.stderr


def test_a_token_of_another_tenant_is_refused_by_name(settings: Settings) -> None:
    """It would read nothing, and so it is not made; the error says why and where that is decided."""
    refused = plant(settings, "tokens", "add", "dashboard", "--tenant", "acme")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "A token of the tenant 'acme' can't be added." in refused.stderr
    assert "docs/decisions/0030-tokens-of-the-default-tenant.md" in refused.stderr
    assert listed(settings) == []


def test_what_can_t_be_is_refused(settings: Settings) -> None:
    """An unknown scope, a name of other signs, a time that has passed, a token that is not there."""
    for arguments in (
        ("add", "dashboard", "--scope", "write"),
        ("add", "dashboard", "--scope", "read:everything"),
        ("add", "Dash board"),
        ("add", "dashboard", "--expires", "2020-01-01T00:00Z"),
    ):
        refused = plant(settings, "tokens", *arguments)
        assert (refused.returncode, refused.stdout) == (2, ""), arguments
    assert plant(settings, "tokens", "revoke", "0123456789ab", "--execute").returncode == 3
    assert plant(settings, "tokens", "list", "--name", "nobody").returncode == 3
    assert listed(settings) == []


async def test_without_kafka_no_token_is_made(settings: Settings) -> None:
    """An action that can't be recorded is not done."""
    await apply(settings)
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    refused = plant(away, "tokens", "add", "dashboard")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert listed(settings) == []
