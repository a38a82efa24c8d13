"""`plant producers show` and `delete`: a policy goes, recorded, and never from under a key."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from uuid import uuid4

import pytest

from devstack import sql
from operations.cli.main import run
from runtime.settings import Settings
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import environ_with, operations
from tests.support.webhooks import add_key

Plant = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def plant(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plant:
    """Runs a command in this process; returns exit code, stdout and stderr."""
    asyncio.run(apply(settings))
    for name in [name for name in os.environ if name.startswith("PLANT_")]:
        monkeypatch.delenv(name)
    for name, value in environ_with(settings).items():
        monkeypatch.setenv(name, value)

    def command(words: str) -> tuple[int, str, str]:
        code = run(words.split())
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return command


@pytest.fixture
def producer() -> str:
    """A producer that no other test has: the topics are shared."""
    return f"p{uuid4().hex[:12]}"


def end_keys(database: Database, producer: str) -> None:
    sql.execute(
        database.superuser_url, [f"UPDATE webhook_signatures SET revoked_at = now() WHERE producer = '{producer}'"]
    )


def test_a_producer_is_shown_with_its_keys(plant: Plant, settings: Settings, producer: str) -> None:
    """Its policy and its keys, and no secret; one that nobody knows is exit 3."""
    asyncio.run(add_key(settings, producer))
    assert plant(f"producers set {producer} --rate 5 --event-types genesis.agent.rated")[0] == 0
    code, out, _ = plant(f"producers show {producer} --output json")
    ((shown,), key) = (json.loads(out), json.loads(out)[0]["keys"][0])
    assert (code, shown["name"], shown["rate_per_second"], shown["event_types"]) == (
        0, producer, 5.0, ["genesis.agent.rated"],
    )  # fmt: skip
    assert (shown["burst"], key["state"], key.keys() & {"secret", "ciphertext"}) == (None, "active", set())
    code, out, _ = plant(f"producers show {producer}")
    assert (code, key["id"] in out, "default" in out) == (0, True, True)
    code, _, err = plant("producers show gensis")
    assert (code, "no producer gensis" in err) == (3, True)


@pytest.mark.parametrize("not_before", ["now() - interval '1 day'", "now() + interval '1 day'"])
def test_a_policy_stays_while_a_key_could_do_without_it(
    plant: Plant, settings: Settings, database: Database, producer: str, not_before: str
) -> None:
    """Neither an active key nor one that begins later is left with the default policy; nothing is recorded."""
    asyncio.run(add_key(settings, producer))
    sql.execute(
        database.superuser_url,
        [f"UPDATE webhook_signatures SET not_before = {not_before} WHERE producer = '{producer}'"],
    )
    assert plant(f"producers disable {producer} --execute")[0] == 0
    for words in ("", " --execute"):
        code, _, err = plant(f"producers delete {producer}{words}")
        assert (code, f"plant keys list --producer {producer}" in err) == (3, True)
    assert plant(f"producers show {producer}")[0] == 0
    assert [act.action for act in asyncio.run(operations(settings, producer))] == ["producers.disable"]


def test_a_policy_is_deleted_once_its_keys_are_revoked(
    plant: Plant, settings: Settings, database: Database, producer: str
) -> None:
    """The plan changes nothing; done, the record says what went; keys stay listed; again there is nothing to do."""
    asyncio.run(add_key(settings, producer))
    assert plant(f"producers set {producer} --rate 5 --binary-mode")[0] == 0
    end_keys(database, producer)
    code, _, err = plant(f"producers delete {producer}")
    assert (code, f"would delete {producer}" in err, "rate 5.0" in err) == (0, True, True)
    assert json.loads(plant(f"producers show {producer} --output json")[1])[0]["rate_per_second"] == 5.0
    code, _, err = plant(f"producers delete {producer} --execute --actor ops --reason old")
    assert (code, err) == (0, f"deleted {producer}\n")
    (shown,) = json.loads(plant(f"producers show {producer} --output json")[1])
    assert (shown["rate_per_second"], shown["binary_mode"], len(shown["keys"])) == (None, False, 1)
    act = asyncio.run(operations(settings, producer))[-1]
    assert (act.action, act.actor) == ("producers.delete", "ops")
    assert act.reason == "old [state enabled; event types all; rate 5.0; burst default; binary mode True]"
    assert "nothing to do" in plant(f"producers delete {producer} --execute")[2]
    assert plant("producers delete gensis --execute")[0] == 3


def test_a_producer_of_a_policy_alone_is_gone(plant: Plant, producer: str) -> None:
    """Without keys nothing of it is left."""
    assert plant(f"producers set {producer} --rate 5")[0] == 0
    assert plant(f"producers delete {producer} --execute")[0] == 0
    assert plant(f"producers show {producer}")[0] == 3
