"""`plant producers`: policies, the operator actions that change them, and how the keyring reads them."""

from __future__ import annotations

import json
from uuid import uuid4

import msgspec
import pytest

from database.connector import connect
from devstack import sql
from ingress.keys import Keyring, KeyStore
from ingress.producers import PolicyChanges, ProducerPolicy, ProducerStore, default_policy
from operations.cli import main as command_line
from runtime.clock import SystemClock
from runtime.settings import Settings
from signing.master_key import MasterKeys
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import operations, plant
from tests.support.webhooks import add_key


def listed(settings: Settings) -> dict[str, dict[str, object]]:
    """What `plant producers list` says, by name."""
    answer = plant(settings, "producers", "list", "--output", "json")
    assert answer.returncode == 0, answer.stderr
    return {row.pop("name"): row for row in json.loads(answer.stdout)}


async def policies(settings: Settings, *names: str) -> list[ProducerPolicy]:
    """What a keyring that has just read the database says of these producers."""
    database = connect(settings, "operator")
    try:
        keyring = Keyring(KeyStore(database, MasterKeys(settings)), SystemClock(), default_policy(settings))
        await keyring.refresh()
        return [keyring.policy(name) for name in names]
    finally:
        await database.close()


async def test_a_producer_without_a_policy_has_the_defaults(settings: Settings) -> None:
    """It may send every type at the settings' rate, whether it has keys or nobody has heard of it."""
    await add_key(settings, "genesis")
    for policy in await policies(settings, "genesis", "unheard-of"):
        assert (policy.event_types, policy.disabled, policy.binary_mode) == (None, False, False)
        assert policy.rate_per_second == settings.ingress_producer_rate_per_second == 10_000
        assert policy.burst == settings.ingress_producer_burst == 20_000
    assert [policy.name for policy in await policies(settings, "a", "b")] == ["a", "b"]
    row = listed(settings)["genesis"]
    assert (row["state"], row["event_types"], row["burst"], row["active_keys"]) == ("enabled", None, None, 1)


async def test_a_policy_is_recorded_then_set_bit_by_bit(settings: Settings) -> None:
    """An option that is left out stays; `all` and `default` go back; each change is an operator action."""
    await apply(settings)
    name = f"set-{uuid4().hex}"
    types = "genesis.agent.rated,genesis.agent.available"
    done = plant(settings, "producers", "set", name, "--event-types", types, "--rate", "2.5", "--actor", "ops")
    assert done.returncode == 0, done.stderr
    (policy,) = await policies(settings, name)
    assert policy == ProducerPolicy(
        name=name, event_types=frozenset(types.split(",")), rate_per_second=2.5, burst=20_000, disabled=False
    )
    assert plant(settings, "producers", "set", name, "--burst", "7").returncode == 0
    (policy,) = await policies(settings, name)
    assert (len(policy.event_types or ()), policy.rate_per_second, policy.burst) == (2, 2.5, 7)
    back = plant(settings, "producers", "set", name, "--event-types", "all", "--rate", "default")
    assert back.returncode == 0, back.stderr
    (policy,) = await policies(settings, name)
    assert (policy.event_types, policy.rate_per_second, policy.burst) == (None, 10_000, 7)
    acts = await operations(settings, name)
    assert [(act.action, act.target) for act in acts] == [("producers.set", name)] * 3
    assert acts[0].actor == "ops"
    assert acts[0].reason.endswith("[event types genesis.agent.available,genesis.agent.rated; rate 2.5]")
    table = plant(settings, "producers", "list").stdout.splitlines()
    assert table[1].split()[:5] == [name, "enabled", "all", "default", "7"]


async def test_binary_mode_is_allowed_and_taken_back(settings: Settings) -> None:
    """Nobody has it at first; each change is an operator action, and leaves the rest of a policy."""
    await apply(settings)
    name = f"binary-{uuid4().hex}"
    assert plant(settings, "producers", "set", name, "--burst", "7").returncode == 0
    assert [policy.binary_mode for policy in await policies(settings, name)] == [False]
    assert plant(settings, "producers", "set", name, "--binary-mode").returncode == 0
    assert [(policy.binary_mode, policy.burst) for policy in await policies(settings, name)] == [(True, 7)]
    assert listed(settings)[name]["binary_mode"] is True
    assert plant(settings, "producers", "set", name, "--rate", "3").returncode == 0
    assert [policy.binary_mode for policy in await policies(settings, name)] == [True]
    assert plant(settings, "producers", "set", name, "--no-binary-mode").returncode == 0
    assert [policy.binary_mode for policy in await policies(settings, name)] == [False]
    reasons = [act.reason.partition("[")[2] for act in await operations(settings, name)]
    assert reasons == ["burst 7]", "binary mode on]", "rate 3.0]", "binary mode off]"]


async def test_disabling_needs_execute_and_enabling_undoes_it(settings: Settings) -> None:
    """The plan changes nothing; done, it is recorded; again changes nothing; a policy survives both."""
    await apply(settings)
    name = f"switched-{uuid4().hex}"
    await add_key(settings, name)
    planned = plant(settings, "producers", "disable", name)
    assert f"would disable {name}, which has 1 active key" in planned.stderr
    assert listed(settings)[name]["state"] == "enabled"
    assert f"disabled {name}" in plant(settings, "producers", "disable", name, "--execute").stderr
    assert [policy.disabled for policy in await policies(settings, name, "other")] == [True, False]
    assert "nothing to do" in plant(settings, "producers", "disable", name, "--execute").stderr
    assert f"enabled {name}" in plant(settings, "producers", "enable", name).stderr
    assert "nothing to do" in plant(settings, "producers", "enable", name).stderr
    assert [policy.disabled for policy in await policies(settings, name)] == [False]
    actions = [act.action for act in await operations(settings, name)]
    assert actions == ["producers.disable", "producers.enable"]


async def test_a_name_that_nobody_has_is_not_switched(settings: Settings) -> None:
    """A typing error must not look like a producer that was disabled: exit code 3, and no row."""
    answer = plant(settings, "producers", "disable", "gensis", "--execute")
    assert (answer.returncode, "no producer gensis" in answer.stderr) == (3, True)
    assert listed(settings) == {}


async def test_without_kafka_nothing_is_done(settings: Settings) -> None:
    """An action that can't be recorded is not done."""
    await apply(settings)
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    assert plant(away, "producers", "set", "genesis", "--burst", "7").returncode == 4
    assert listed(settings) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "genesis"),
        ("set", "Bad Name", "--burst", "1"),
        ("set", "genesis", "--event-types", "genesis.agent.unheard"),
        ("set", "genesis", "--event-types", "plant.operation.recorded"),
        ("set", "genesis", "--event-types", ""),
        ("set", "genesis", "--rate", "0"),
        ("set", "genesis", "--rate", "nan"),
        ("set", "genesis", "--rate", "inf"),
        ("set", "genesis", "--burst", "0"),
        ("set", "genesis", "--burst", "1.5"),
        ("set", "genesis", "--burst", "3000000000"),
    ],
)
def test_bad_arguments_are_usage_errors(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Types that don't come in, and rates that can't be, are exit code 2, and nothing is done."""
    for name, value in msgspec.structs.asdict(settings).items():
        monkeypatch.setenv(f"PLANT_{name.upper()}", str(value))
    assert command_line.run(["producers", *arguments]) == 2
    assert sql.value(database.owner_url, "SELECT count(*) FROM producers") == 0


async def test_setting_and_disabling_at_once_keep_each_others_work(settings: Settings) -> None:
    """One changes limits, one the switch: neither undoes what the other did."""
    database = connect(settings, "operator")
    store = ProducerStore(database)
    await store.disable("genesis")
    await store.set("genesis", PolicyChanges(burst=3))
    found = await store.find("genesis")
    assert (found.disabled_at is not None, found.burst) == (True, 3)
    await store.set("genesis", PolicyChanges(burst=None, event_types=frozenset({"genesis.agent.rated"})))
    await store.enable("genesis")
    found = await store.find("genesis")
    assert (found.disabled_at, found.burst, found.event_types) == (None, None, ("genesis.agent.rated",))
    await database.close()
