"""`plant keys` with both schemes: public keys, validity windows, and changing keys with an overlap."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from database.connector import Database, connect
from ingress.errors import PublicKeyKnown, TooManyKeys
from ingress.keys import V1A_KEYS_MAX, Keyring, KeyStore, new_key_id
from ingress.producers import default_policy
from runtime.clock import SystemClock
from runtime.settings import Settings
from signing.ed25519 import (
    PrivateKey,
    decode_private_key,
    encode_private_key,
    encode_public_key,
    new_private_key,
)
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.signatures import Ed25519Key, HmacKey, SignatureRejected, Verified, sign
from streams.topics import apply
from tests.support.command_line import keys_of, operations, plant


@pytest_asyncio.fixture
async def operator(settings: Settings) -> AsyncIterator[Database]:
    """The database as plant_operator."""
    database = connect(settings, "operator")
    yield database
    await database.close()


@pytest.fixture
def store(settings: Settings, operator: Database) -> KeyStore:
    return KeyStore(operator, MasterKeys(settings))


async def loaded(store: KeyStore) -> Keyring:
    """A keyring that has read the keys."""
    keyring = Keyring(store, SystemClock())
    await keyring.refresh()
    return keyring


def verified(keyring: Keyring, key: PrivateKey | bytes, producer: str | None = None) -> str:
    """Whose message it is that was signed with this key just now; nothing: nobody's."""
    message = (b"msg_1", str(int(time.time())).encode(), b"{}")
    signature = key.sign(*message) if isinstance(key, PrivateKey) else sign(key, *message)
    verdict = keyring.verify(message[0], message[1], signature, message[2], producer)
    return verdict.key.owner if isinstance(verdict, Verified) else ""


async def test_a_pair_is_made_and_its_private_half_shown_once(settings: Settings, store: KeyStore) -> None:
    """stdout is the whsk_ key alone; what it signs is verified; action and listing name the public key only."""
    await apply(settings)
    made = plant(settings, "keys", "add", "genesis", "--scheme", "v1a", "--reason", "first pair")
    assert made.returncode == 0, made.stderr
    pair = decode_private_key(made.stdout.strip())
    assert verified(await loaded(store), pair) == "genesis"
    (listed,) = await keys_of(settings)
    public_key = encode_public_key(pair.public_key)
    assert (listed["scheme"], listed["state"], listed["public_key"]) == ("v1a", "active", public_key)
    (act,) = await operations(settings, f"genesis/{listed['id']}")
    assert (act.action, act.reason) == ("keys.add", f"first pair [public key {public_key}]")
    assert made.stdout.strip() not in made.stderr + str(listed) + act.reason


async def test_a_producers_own_public_key_is_registered(settings: Settings, store: KeyStore) -> None:
    """The private half never comes here: there is no secret to print, and JSON says so."""
    await apply(settings)
    pair = new_private_key()
    public_key = encode_public_key(pair.public_key)
    made = plant(settings, "keys", "add", "genesis", "--public-key", public_key.rstrip("="))
    assert (made.returncode, made.stdout) == (0, ""), made.stderr
    assert public_key in made.stderr
    assert verified(await loaded(store), pair) == "genesis"
    again = plant(settings, "keys", "add", "other", "--public-key", public_key)
    assert (again.returncode, "registered before" in again.stderr) == (3, True)
    other = encode_public_key(new_private_key().public_key)
    printed = plant(settings, "keys", "add", "other", "--public-key", other, "--output", "json", "--expires", "1d")
    document = json.loads(printed.stdout)
    assert (document["secret"], document["public_key"], document["scheme"]) == (None, other, "v1a")
    assert document["expires_at"] is not None


async def test_a_private_key_given_as_a_public_one_is_not_repeated(settings: Settings) -> None:
    """The mistake is named; the key stands in no output and nothing is stored."""
    private_key = encode_private_key(new_private_key())
    refused = plant(settings, "keys", "add", "genesis", "--public-key", private_key)
    assert (refused.returncode, "private key" in refused.stderr) == (2, True)
    assert private_key[5:] not in refused.stderr + refused.stdout
    assert await keys_of(settings) == []


async def test_rotating_needs_execute_and_is_recorded(settings: Settings, store: KeyStore) -> None:
    """The plan changes nothing; then there is a new key, the old ones of its scheme expire together, others stay."""
    await apply(settings)
    name = f"rotating-{uuid4().hex}"
    old, ending, pair = new_secret(), new_secret(), new_private_key()
    ids = [new_key_id() for _ in range(5)]
    soon = datetime.now(UTC) + timedelta(minutes=5)
    await store.add(ids[0], name, old, None)
    await store.add(ids[1], name, ending, soon)
    await store.add(ids[2], name, pair.public_key, None, scheme="v1a")
    await store.add(ids[3], "other", new_secret(), None)
    await store.add(ids[4], name, new_secret(), None, not_before=datetime.now(UTC) + timedelta(days=1))
    planned = plant(settings, "keys", "rotate", name, "--scheme", "v1")
    assert (planned.returncode, planned.stdout) == (0, "")
    assert str(ids[0]) in planned.stderr
    assert "--execute" in planned.stderr
    assert len(await keys_of(settings)) == 5
    assert await operations(settings, f"{name}/") == []

    done = plant(settings, "keys", "rotate", name, "--scheme", "v1", "--overlap", "2h", "--execute", "--output", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {key["id"] for key in document["expiring"]} == {str(ids[0]), str(ids[1])}
    expiry = {UUID(key["id"]): key["expires_at"] for key in await keys_of(settings)}
    ends = datetime.fromisoformat(expiry[ids[0]])
    assert timedelta(minutes=115) < ends - datetime.now(UTC) < timedelta(hours=2)
    assert datetime.fromisoformat(expiry[ids[1]]) == soon
    assert [expiry[key_id] for key_id in ids[2:]] == [None, None, None]
    (act,) = await operations(settings, f"{name}/")
    assert (act.action, act.target) == ("keys.rotate", f"{name}/{document['id']}")
    assert "overlap 2h" in act.reason
    assert all(str(key_id) in act.reason for key_id in ids[:2])
    keyring = await loaded(store)
    assert {verified(keyring, key) for key in (old, ending, pair)} == {name}


async def test_rotating_goes_by_the_scheme_that_is_in_use(settings: Settings, store: KeyStore) -> None:
    """A v1a producer gets a v1a key without being asked; with keys of both schemes it has to be said which."""
    await apply(settings)
    nothing = plant(settings, "keys", "rotate", "genesis", "--execute")
    assert (nothing.returncode, "no active key" in nothing.stderr) == (3, True)
    await store.add(new_key_id(), "genesis", new_private_key().public_key, None, scheme="v1a")
    done = plant(settings, "keys", "rotate", "genesis", "--execute")
    assert done.returncode == 0, done.stderr
    assert verified(await loaded(store), decode_private_key(done.stdout.strip())) == "genesis"
    await store.add(new_key_id(), "genesis", new_secret(), None)
    unclear = plant(settings, "keys", "rotate", "genesis", "--execute")
    assert (unclear.returncode, "--scheme" in unclear.stderr) == (2, True)
    mine = encode_public_key(new_private_key().public_key)
    assert plant(settings, "keys", "rotate", "genesis", "--public-key", mine, "--execute").returncode == 0
    assert [key["expires_at"] is None for key in await keys_of(settings) if key["scheme"] == "v1a"] == [
        False,
        False,
        True,
    ]


async def test_a_key_with_a_start_waits_for_it(settings: Settings, store: KeyStore) -> None:
    """It is listed as pending and verifies nothing, while one without a start works at once."""
    await apply(settings)
    made = plant(settings, "keys", "add", "genesis", "--scheme", "v1a", "--not-before", "1h", "--expires", "2h")
    assert made.returncode == 0, made.stderr
    assert [key["state"] for key in await keys_of(settings)] == ["pending"]
    keyring = await loaded(store)
    assert len(keyring.keys) == 1
    assert verified(keyring, decode_private_key(made.stdout.strip())) == ""


async def test_a_key_without_a_start_works_where_the_clock_is_behind(store: KeyStore, operator: Database) -> None:
    """Ingress and database need not agree on the second in which a key was made."""

    class Behind(SystemClock):
        def now(self) -> datetime:
            return super().now() - timedelta(minutes=2)

    secret = new_secret()
    await store.add(new_key_id(), "genesis", secret, None)
    keyring = Keyring(store, Behind())
    await keyring.refresh()
    assert verified(keyring, secret) == "genesis"


async def test_a_producer_has_a_bounded_number_of_v1a_keys(store: KeyStore) -> None:
    """One more is refused; when one is revoked there is room again; nobody else's keys count."""
    ids = [new_key_id() for _ in range(V1A_KEYS_MAX)]
    for key_id in ids:
        await store.add(key_id, "genesis", new_private_key().public_key, None, scheme="v1a")
    pair = new_private_key()
    with pytest.raises(TooManyKeys):
        await store.add(new_key_id(), "genesis", pair.public_key, None, scheme="v1a")
    await store.add(new_key_id(), "other", new_private_key().public_key, None, scheme="v1a")
    await store.revoke(ids[0])
    await store.add(new_key_id(), "genesis", pair.public_key, None, scheme="v1a")


async def test_a_revoked_public_key_never_comes_back(store: KeyStore) -> None:
    """Revoking is permanent: the same key can't be registered again."""
    key_id, pair = new_key_id(), new_private_key()
    await store.add(key_id, "genesis", pair.public_key, None, scheme="v1a")
    await store.revoke(key_id)
    with pytest.raises(PublicKeyKnown):
        await store.add(new_key_id(), "genesis", pair.public_key, None, scheme="v1a")
    assert verified(await loaded(store), pair) == ""


async def test_the_keyring_holds_both_schemes(settings: Settings, store: KeyStore) -> None:
    """Each key signs for its own producer; an unverified name narrows the search and proves nothing."""
    secret, pair = new_secret(), new_private_key()
    await store.add(new_key_id(), "first", secret, None)
    await store.add(new_key_id(), "second", pair.public_key, None, scheme="v1a")
    keys, _ = await store.load(default_policy(settings))
    assert [type(key) for key in keys] == [Ed25519Key, HmacKey]
    keyring = await loaded(store)
    assert [verified(keyring, secret, name) for name in (None, "first", "second", "nobody")] == [
        "first",
        "first",
        "",
        "",
    ]
    assert [verified(keyring, pair, name) for name in (None, "first", "second")] == ["second", "", "second"]


async def test_the_key_that_matched_is_tried_first(store: KeyStore) -> None:
    """Over refreshes too; a key that is new comes before all others, as it may be in use at any moment."""
    secrets = [new_secret() for _ in range(4)]
    for number, secret in enumerate(secrets):
        await store.add(new_key_id(), f"p{number}", secret, None)
    keyring = await loaded(store)
    assert [key.owner for key in keyring.keys] == ["p3", "p2", "p1", "p0"]
    assert verified(keyring, secrets[1]) == "p1"
    assert [key.owner for key in keyring.keys] == ["p1", "p3", "p2", "p0"]
    await store.add(new_key_id(), "new", new_secret(), None)
    await keyring.refresh()
    assert [key.owner for key in keyring.keys] == ["new", "p1", "p3", "p2", "p0"]
    empty = keyring.verify(b"m", b"1", b"", b"{}")
    assert isinstance(empty, SignatureRejected)
