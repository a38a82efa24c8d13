"""`plant keys` and the master key: a wrong one gives out no secret, and another one replaces it."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable

import msgspec
import pytest
from structlog.testing import capture_logs

from database.connector import connect
from devstack import sql
from ingress.keys import KeyStore, new_key_id
from ingress.producers import default_policy
from operations.cli import main as command_line
from operations.secret_tables import SECRET_TABLES
from runtime.settings import Settings
from signing.errors import OtherMasterKey
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.master_key_rows import change_master_key
from signing.signatures import HmacKey
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import environ_with, operations

Run = Callable[..., int]
SECRETS = "SELECT count(*) FROM webhook_signatures WHERE scheme = 'v1'"


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `plant` in this process with the test's settings, some of them changed."""
    asyncio.run(apply(settings))

    def run(*arguments: str, **changes: str) -> int:
        for name, value in environ_with(msgspec.structs.replace(settings, **changes)).items():
            monkeypatch.setenv(name, value)
        return command_line.run(list(arguments))

    return run


def another() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


async def opened(settings: Settings) -> dict[str, bytes]:
    """The secrets that an ingress process with these settings could use, by producer."""
    database = connect(settings, "ingress")
    try:
        keys, _ = await KeyStore(database, MasterKeys(settings)).load(default_policy(settings))
        return {key.owner: key.secret for key in keys if isinstance(key, HmacKey)}
    finally:
        await database.close()


async def store_key(settings: Settings, producer: str) -> bytes:
    database, secret = connect(settings, "operator"), new_secret()
    try:
        await KeyStore(database, MasterKeys(settings)).add(new_key_id(), producer, secret, None)
        return secret
    finally:
        await database.close()


@pytest.mark.parametrize("remembered", [True, False])
def test_a_key_under_another_master_key_is_not_made(
    run: Run, database: Database, settings: Settings, capsys: pytest.CaptureFixture[str], remembered: bool
) -> None:
    """Exit code 3, no secret and no row, also in a database of before check values; the next step harms nothing."""
    assert run("keys", "add", "genesis") == 0
    capsys.readouterr()
    if not remembered:
        sql.execute(database.owner_url, ["DELETE FROM master_keys"])
    other = f"other-{secrets.token_hex(4)}"  # actions of all tests are on one topic
    for verb in (("add", "genesis"), ("add", other), ("rotate", "genesis", "--execute")):
        assert run("keys", *verb, master_key=another()) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert "PLANT_MASTER_KEY" in err
        assert "urandom" not in err
    assert sql.value(database.owner_url, SECRETS) == 1
    assert len(asyncio.run(operations(settings, other))) == 0


def test_revoking_and_listing_need_no_master_key(run: Run, database: Database) -> None:
    """Nor does a public key; when the master key is lost, keys can be ended all the same."""
    assert run("keys", "add", "genesis") == 0
    key_id = str(sql.value(database.owner_url, "SELECT id FROM webhook_signatures"))
    public_key = "whpk_O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik="
    for arguments in (("list",), ("revoke", key_id, "--execute"), ("add", "other", "--public-key", public_key)):
        assert run("keys", *arguments, master_key="") == 0, arguments
    assert sql.value(database.owner_url, "SELECT count(*) FROM webhook_signatures WHERE revoked_at IS NULL") == 1
    assert run("keys", "add", "genesis", master_key="") == 2


def test_the_master_key_is_changed_with_two_accepted_meanwhile(
    run: Run, database: Database, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, change, nothing to do; a process with both keys opens every secret at each step."""
    both = msgspec.structs.replace(settings, master_key=another(), master_key_previous=settings.master_key)
    changed = {"master_key": both.master_key, "master_key_previous": both.master_key_previous}
    made = {name: asyncio.run(store_key(settings, name)) for name in ("first", "second")}
    made["between"] = asyncio.run(store_key(both, "between"))
    assert asyncio.run(opened(settings)) == asyncio.run(opened(both)) == made  # no process is behind yet
    assert run("keys", "rekey", **changed) == 0
    assert "would change 3 secrets over" in capsys.readouterr().err
    assert asyncio.run(opened(settings)) == made
    assert run("keys", "rekey", "--execute", **changed) == 0
    assert "changed 3 secrets over" in capsys.readouterr().err
    after = msgspec.structs.replace(both, master_key_previous="")
    assert asyncio.run(opened(both)) == asyncio.run(opened(after)) == made
    assert run("keys", "rekey", "--execute", **changed) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert sql.value(database.owner_url, "SELECT count(*) FROM master_keys WHERE retired_at IS NULL") == 1
    assert run("keys", "add", "late") == 3
    recorded = asyncio.run(operations(settings, "master key"))
    assert [act.action for act in recorded if "3 secrets" in act.reason][-1:] == ["keys.rekey"]
    with capture_logs() as logs:
        assert asyncio.run(opened(settings)) == {}
    assert "master_key.differs" in [line["event"] for line in logs]


def test_a_change_that_would_lose_a_secret_changes_nothing(
    run: Run, database: Database, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the master key before, or with another one; where no usable secret is left, none is needed."""
    secret = asyncio.run(store_key(settings, "genesis"))
    for previous in ("", another()):
        assert run("keys", "rekey", "--execute", master_key=another(), master_key_previous=previous) == 3
        assert "genesis/" in capsys.readouterr().err
    assert asyncio.run(opened(settings)) == {"genesis": secret}
    key_id = str(sql.value(database.owner_url, "SELECT id FROM webhook_signatures"))
    assert run("keys", "revoke", key_id, "--execute", master_key="") == 0
    new = another()
    assert run("keys", "rekey", "--execute", master_key=new, master_key_previous="") == 0
    assert run("keys", "add", "genesis", master_key=new, master_key_previous="") == 0


async def test_two_first_keys_at_once_are_under_one_master_key(settings: Settings) -> None:
    """One of two operators with different master keys is refused, whoever comes first."""
    other = msgspec.structs.replace(settings, master_key=another())
    done = await asyncio.gather(store_key(settings, "a"), store_key(other, "b"), return_exceptions=True)
    assert sorted(type(each) is OtherMasterKey for each in done) == [False, True]


async def test_a_key_that_is_made_during_the_change_is_changed_too(settings: Settings) -> None:
    """Additions and the change wait for each other: afterwards all open under the new master key alone."""
    both = msgspec.structs.replace(settings, master_key=another(), master_key_previous=settings.master_key)
    await store_key(settings, "first")
    database = connect(both, "operator")
    try:
        await asyncio.gather(
            *(store_key(both, f"p{number}") for number in range(8)),
            change_master_key(database, MasterKeys(both), SECRET_TABLES, execute=True),
        )
        again = await change_master_key(database, MasterKeys(both), SECRET_TABLES, execute=False)
    finally:
        await database.close()
    assert again.secret_count == 0
    assert len(await opened(msgspec.structs.replace(both, master_key_previous=""))) == 9
