"""Commands that write, while the database takes no writes, and while it has no tables."""

from __future__ import annotations

import asyncio
import os

import pytest

from devstack import sql
from operations.cli.main import run
from runtime.settings import Settings
from streams.topics import OPERATIONS_TOPIC, apply
from tests.conftest import Database
from tests.support.command_line import environ_with
from tests.support.webhooks import read_all

WRITES = ("keys add case14", "producers set case14 --rate 100", "seed", "db upgrade", "entities check --tenant none")
"""The last one only reads."""


@pytest.fixture(autouse=True)
def _with_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the settings of the test's database."""
    for name in [name for name in os.environ if name.startswith("PLANT_")]:
        monkeypatch.delenv(name)
    for name, value in environ_with(settings).items():
        monkeypatch.setenv(name, value)


async def recorded(settings: Settings) -> list[str]:
    """Return the targets of all recorded actions."""
    return [getattr(received.event, "target", "") for received in await read_all(settings, OPERATIONS_TOPIC)]


@pytest.mark.parametrize("command", WRITES)
def test_a_read_only_database_is_exit_code_4(
    command: str, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error says so, nothing is recorded, and nothing is unexpected."""
    sql.execute(database.superuser_url, [f"ALTER DATABASE {database.name} SET default_transaction_read_only = on"])

    code = run(command.split())

    shown = capfd.readouterr().err
    assert "unexpected" not in shown
    if command.startswith("entities"):
        assert code == 3
    else:
        assert (code, "takes no writes now" in shown) == (4, True), shown


async def test_an_action_that_can_not_be_done_is_not_recorded(database: Database, settings: Settings) -> None:
    """What is on `plant.operations` was done."""
    await apply(settings)
    sql.execute(database.superuser_url, [f"ALTER DATABASE {database.name} SET default_transaction_read_only = on"])

    assert await asyncio.to_thread(run, ["keys", "add", f"never-{database.name}"]) == 4
    assert await asyncio.to_thread(run, ["producers", "set", f"never-{database.name}", "--rate", "1"]) == 4

    assert [target for target in await recorded(settings) if "never" in target] == []


@pytest.mark.parametrize("command", ["keys list", "producers list", "relay --once", "entities check", "audit verify"])
def test_a_database_without_tables_is_exit_code_3(
    command: str, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """Or 2, and the next step is to migrate."""
    sql.execute(database.superuser_url, ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"])

    code = run(command.split())

    shown = capfd.readouterr().err
    assert "unexpected" not in shown, shown
    assert (code in (2, 3), "plant db upgrade" in shown) == (True, True), shown
