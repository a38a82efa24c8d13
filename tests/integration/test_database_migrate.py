"""Migrations: idempotent, one at a time, on both versions of Postgres, with every failure named."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import log_rows
import pytest
from conftest import Database
from services import Services
from test_migration_006 import up_down_up

from database import migrate
from database.errors import DatabaseUnreachable, MigrationLocked, RolesMissing, SchemaBehind
from devstack import postgres, processes, sql
from devstack.postgres import Postgres
from operations.cli import main as command_line


@pytest.fixture
def bare_database(stack: Services) -> Iterator[Database]:
    """A database that was never migrated."""
    name = f"plant_bare_{secrets.token_hex(6)}"
    postgres.create_database(stack.superuser_url, name)
    yield log_rows.addresses(stack, name)
    postgres.drop_database(stack.superuser_url, name)


def test_upgrade_goes_to_the_newest_and_stays_there(bare_database: Database) -> None:
    """From nothing to the heads; a second upgrade changes nothing; any role may check."""
    url = bare_database.owner_url
    assert migrate.current(url) == ()
    with pytest.raises(SchemaBehind, match="no revision"):
        migrate.check(url)
    assert migrate.upgrade(url) == migrate.upgrade(url) == migrate.current(url) == migrate.heads()
    for role in ("owner", "writer", "api", "auditor"):
        migrate.check(getattr(bare_database, f"{role}_url"))


async def test_upgrade_works_inside_an_event_loop(bare_database: Database) -> None:
    """Synchronous code, callable where a loop is running."""
    assert migrate.upgrade(bare_database.owner_url) == migrate.heads()


def test_concurrent_upgrades_wait_for_each_other(bare_database: Database) -> None:
    """Four upgrades at once: all succeed, one of them did the work."""
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(migrate.upgrade, [bare_database.owner_url] * 4))
    assert done == [migrate.heads()] * 4


def test_an_upgrade_gives_up_waiting_for_another(bare_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that never ends is named, after a deadline."""
    monkeypatch.setattr(migrate, "WAIT_FOR_OTHER_UPGRADE_SECONDS", 0)

    async def while_locked(connection: Any) -> None:
        await connection.execute(f"SELECT pg_advisory_lock({migrate._ADVISORY_LOCK})")
        with pytest.raises(MigrationLocked, match="Another migration"):
            migrate.upgrade(bare_database.owner_url)

    log_rows.on_connection(bare_database.superuser_url, while_locked)


def test_a_locked_table_makes_the_migration_give_up(bare_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that someone holds stops the migration soon, and nothing was changed."""
    migrate.upgrade(bare_database.owner_url)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 1)

    async def while_held(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute("LOCK TABLE checkpoints IN ACCESS SHARE MODE")
            with pytest.raises(MigrationLocked, match="nothing was changed"):
                migrate.downgrade(bare_database.owner_url, "event_log@base")

    log_rows.on_connection(bare_database.superuser_url, while_held)
    migrate.check(bare_database.owner_url)


def test_a_failed_migration_leaves_nothing(bare_database: Database) -> None:
    """DDL and version go together: after a failure in the middle, the database is as it was."""
    sql.run(bare_database.owner_url, ["CREATE TABLE webhook_deliveries (a int)"])
    with pytest.raises(asyncpg.DuplicateTableError, match="webhook_deliveries"):
        migrate.upgrade(bare_database.owner_url)
    assert migrate.current(bare_database.owner_url) == ()
    assert sql.value(bare_database.owner_url, "SELECT to_regclass('event_stream')") is None


def test_an_unreachable_database_is_named() -> None:
    """No server is exit 4, with its address and without the driver's text."""
    with pytest.raises(DatabaseUnreachable, match=r"127\.0\.0\.1:1/plant as plant_owner: nothing listens") as error:
        migrate.current("postgresql://plant_owner:secret-word@127.0.0.1:1/plant")
    assert error.value.exit_code == 4
    assert "secret-word" not in str(error.value)


def test_the_command_line_migrates(
    bare_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plant db check` says no before and yes after `plant db upgrade`; `current` names the revision on stdout."""
    monkeypatch.setenv("PLANT_HOME", str(tmp_path))
    monkeypatch.setenv("PLANT_DATABASE_OWNER_URL", bare_database.owner_url)
    newest = ", ".join(migrate.heads()) + "\n"

    def said(verb: str) -> tuple[int, str]:
        return command_line.run(["db", verb]), capsys.readouterr().out

    assert said("check") == (3, "")
    assert said("current") == (0, "empty\n")
    assert [said(verb) for verb in ("upgrade", "upgrade", "current", "check")] == [(0, newest)] * 4


@pytest.fixture
def postgres_16(tmp_path: Path) -> Iterator[str]:
    """The superuser's address of a fresh Postgres 16 of this test's own, without Plant's roles."""
    server = Postgres(tmp_path, 16)
    password = secrets.token_hex(8)
    port = processes.choose_port(None, set())
    record = server.start(port, password, lambda _: None)
    yield postgres.address("postgres", password, port, "postgres")
    server.stop(record)
    shutil.rmtree(server.data)


def test_the_migration_runs_on_postgres_16(postgres_16: str) -> None:
    """Without roles, the upgrade says which is missing; with them, up, down and up again work as on 18."""
    assert str(sql.value(postgres_16, "SHOW server_version")).startswith("16.")
    with pytest.raises(RolesMissing, match="plant_writer"):
        migrate.upgrade(postgres_16)
    roles = (Path(migrate.__file__).parent / "roles.sql").read_text(encoding="utf-8")
    sql.run(postgres_16, [roles, roles])
    up_down_up(Database("postgres", *[postgres_16] * 5))
