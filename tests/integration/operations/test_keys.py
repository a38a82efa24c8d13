"""`plant keys`: recorded first, then done; secrets shown once and stored encrypted."""

from __future__ import annotations

import asyncio
import base64
import getpass
import os
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import text
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from database.connector import connect
from devstack import sql
from ingress.errors import UnknownKey
from ingress.keys import Keyring, KeyStore, new_key_id
from ingress.producers import default_policy
from operations import operator_actions as acts
from operations.cli import main as command_line
from runtime.clock import SystemClock
from runtime.settings import Settings
from signing.hmac_secrets import decode_secret, new_secret
from signing.master_key import MasterKeys
from signing.signatures import HmacKey
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import keys_of, operations, plant
from tests.support.waiting import wait_until_async


async def test_a_key_is_recorded_then_made_and_its_secret_shown_once(settings: Settings) -> None:
    """stdout is the secret alone; the operator action is on plant.operations; the row holds no secret."""
    await apply(settings)
    made = plant(settings, "keys", "add", "genesis", "--expires", "90d", "--actor", "ops", "--reason", "first key")
    assert made.returncode == 0, made.stderr
    secret = decode_secret(made.stdout.strip())
    assert Webhook(made.stdout.strip()).sign("m", datetime.now(UTC), "{}").startswith("v1,")
    listed = await keys_of(settings)
    assert [(key["producer"], key["state"]) for key in listed] == [("genesis", "active")]
    acts = await operations(settings, f"genesis/{listed[0]['id']}")
    assert [(act.actor, act.action, act.reason) for act in acts] == [("ops", "keys.add", "first key")]
    database = connect(settings, "operator")
    async with database.transaction() as connection:
        row = (await connection.execute(text("SELECT ciphertext FROM webhook_signatures"))).scalar_one()
    await database.close()
    assert secret not in row
    assert made.stdout.strip() not in plant(settings, "keys", "list", "--output", "jsonl").stdout


async def test_revoking_needs_execute_and_is_recorded(settings: Settings) -> None:
    """Without --execute only the plan is printed; with it the action is recorded and done; again changes nothing."""
    await apply(settings)
    plant(settings, "keys", "add", "genesis")
    key_id = (await keys_of(settings))[0]["id"]
    planned = plant(settings, "keys", "revoke", key_id)
    assert "would revoke" in planned.stderr
    assert [key["state"] for key in await keys_of(settings)] == ["active"]
    assert "revoked key" in plant(settings, "keys", "revoke", key_id, "--execute").stderr
    assert [key["state"] for key in await keys_of(settings)] == ["revoked"]
    assert "nothing to do" in plant(settings, "keys", "revoke", key_id, "--execute").stderr
    actions = [act.action for act in await operations(settings, f"genesis/{key_id}")]
    assert actions == ["keys.add", "keys.revoke"]


async def test_without_kafka_nothing_is_done(settings: Settings) -> None:
    """An action that can't be recorded is not done."""
    await apply(settings)
    away = msgspec.structs.replace(settings, kafka_bootstrap_servers="127.0.0.1:1")
    refused = plant(away, "keys", "add", "genesis")
    assert refused.returncode == 4
    assert refused.stdout == ""
    assert await keys_of(settings) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "Bad Name"),
        ("add", "genesis", "--expires", "yesterday"),
        ("add", "genesis", "--expires", "2020-01-01T00:00Z"),
        ("add", "genesis", "--expires", "2099-01-01T00:00"),
        ("add", "genesis", "--expires", "99999999999d"),
        ("add", "genesis", "--expires", "1h", "--not-before", "2h"),
        ("add", "genesis", "--expires", "9999-12-31T23:59-14:00"),
        ("add", "genesis", "--not-before", "9999-12-31T23:59-14:00"),
        ("add", "genesis", "--expires", "0001-01-01T00:00+14:00"),
        ("rotate", "genesis", "--expires", "9999-12-31T23:59-14:00"),
        ("add", "genesis", "--scheme", "v2"),
        ("add", "genesis", "--public-key", "whpk_AAAA"),
        ("add", "genesis", "--public-key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("add", "genesis", "--public-key", "whpk_O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=", "--scheme", "v1"),
        ("rotate", "Bad Name"),
        ("rotate", "genesis", "--overlap", "a day"),
        ("rotate", "genesis", "--overlap", "99999d"),
        ("rotate", "genesis", "--overlap", "-1h"),
        ("revoke", "not-an-id"),
    ],
)
def test_bad_arguments_are_usage_errors(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Names, times, spans, schemes and ids that can't be are exit code 2, and nothing is done."""
    for name, value in msgspec.structs.asdict(settings).items():
        monkeypatch.setenv(f"PLANT_{name.upper()}", str(value))
    assert command_line.run(["keys", *arguments]) == 2
    assert sql.value(database.owner_url, "SELECT count(*) FROM webhook_signatures") == 0


async def test_an_account_without_a_name_acts_by_its_number(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may run under a number that no user has; its actions are recorded all the same."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(getpass, "getuser", nameless)
    await apply(settings)
    target = new_key_id().hex
    await acts.record(settings, acts.OperatorAction(action="keys.add", target=target, reason="r"))
    assert [act.actor for act in await operations(settings, target)] == [f"uid {os.getuid()}"]


async def test_an_unknown_key_is_said(settings: Settings) -> None:
    """Exit code 3."""
    answer = plant(settings, "keys", "revoke", "00000000-0000-0000-0000-000000000001", "--execute")
    assert (answer.returncode, "There is no key" in answer.stderr) == (3, True)


async def test_the_keyring_holds_what_is_usable(settings: Settings) -> None:
    """Revoked, expired and unreadable keys are left out; the others are decrypted, newest first."""
    database = connect(settings, "operator")
    store = KeyStore(database, MasterKeys(settings))
    secrets: dict[UUID, bytes] = {}
    for producer in ("first", "second", "revoked", "moved"):
        key_id = new_key_id()
        secrets[key_id] = new_secret()
        await store.add(key_id, producer, secrets[key_id], datetime(2100, 1, 1, tzinfo=UTC))
    first, second, revoked, moved = secrets
    await store.revoke(revoked)
    owner = connect(settings, "owner")
    async with owner.transaction() as connection:
        await connection.execute(text("UPDATE webhook_signatures SET producer = 'x' WHERE id = :id"), {"id": moved})
    keyring = Keyring(store, SystemClock())
    await keyring.refresh()
    assert [(key.owner, key.secret) for key in keyring.keys if isinstance(key, HmacKey)] == [
        ("second", secrets[second]),
        ("first", secrets[first]),
    ]
    assert len(keyring.keys) == 2
    with pytest.raises(UnknownKey):
        await store.find(new_key_id())
    await owner.close()
    await database.close()


async def test_an_unreadable_key_is_told_once(settings: Settings) -> None:
    """The keys are read every second; what can't be decrypted is one line in the log, not one a second."""
    database = connect(settings, "operator")
    await KeyStore(database, MasterKeys(settings)).add(new_key_id(), "genesis", new_secret(), None)
    other = msgspec.structs.replace(settings, master_key=base64.b64encode(bytes(32)).decode())
    store = KeyStore(database, MasterKeys(other))
    with capture_logs() as lines:
        for _ in range(2):
            assert await store.load(default_policy(settings)) == ([], {})
    await database.close()
    assert [line["event"] for line in lines] == ["master_key.differs", "key.unreadable"]


async def test_a_silent_network_does_not_stop_the_reading_of_keys(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which nothing more comes is dropped, and the next one reports a revoked key."""
    monkeypatch.setattr("ingress.keys.REFRESH_TIMEOUT_SECONDS", 0.5)
    key_id = new_key_id()
    direct = connect(settings, "operator")
    await KeyStore(direct, MasterKeys(settings)).add(key_id, "genesis", new_secret(), None)
    address = urlsplit(settings.database_address("operator"))
    assert address.hostname is not None
    answering: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(address.hostname, address.port)
        writers.extend((writer, to_there))
        answering.append(asyncio.create_task(forward(there, writer)))
        await forward(reader, to_there)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    through = address._replace(netloc=f"{address.username}:{address.password}@127.0.0.1:{port}")
    database = connect(msgspec.structs.replace(settings, database_operator_url=urlunsplit(through)), "operator")
    keyring = Keyring(KeyStore(database, MasterKeys(settings)), SystemClock())
    await keyring.refresh()
    assert len(keyring.keys) == 1
    for answers in answering:
        answers.cancel()
    await KeyStore(direct, MasterKeys(settings)).revoke(key_id)
    keyring.start()
    await wait_until_async(lambda: not keyring.keys, "the revoked key is gone")
    await keyring.stop()
    await database.close()
    await direct.close()
    server.close()
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def test_known_keys_stay_when_the_database_goes(settings: Settings) -> None:
    """A refresh that fails leaves the last keys in use."""
    database = connect(settings, "operator")
    keyring = Keyring(KeyStore(database, MasterKeys(settings)), SystemClock())
    await keyring.refresh()
    assert keyring.loaded
    owner = connect(settings, "owner")
    async with owner.transaction() as connection:
        await connection.execute(text("REVOKE SELECT ON webhook_signatures FROM plant_operator"))
    with pytest.raises(Exception, match="permission denied"):
        await keyring.refresh()
    assert keyring.loaded
    await owner.close()
    await database.close()
