"""Keys without a database: names, states, stored secrets, and which key is tried."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from database.connector import connect
from ingress.errors import BadProducerName
from ingress.keys import Keyring, KeyStore, StoredKey, check_producer_name
from ingress.producers import ProducerPolicy
from runtime.clock import FixedClock
from runtime.settings import Settings
from signing.master_key import MasterKeys
from signing.signatures import HmacKey, Key, SignatureRejected, Verified, sign

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
SETTINGS = Settings(
    database_url="postgresql://plant_ingress:x@127.0.0.1:1/plant", master_key=base64.b64encode(bytes(32)).decode()
)
TIMESTAMP = str(int(NOW.timestamp())).encode()


def store() -> KeyStore:
    return KeyStore(connect(SETTINGS, "ingress"), MasterKeys(SETTINGS))


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "a\n", "x" * 64])
def test_bad_producer_names_are_refused(name: str) -> None:
    """Names that the database would refuse, or that hold a newline, are refused first."""
    with pytest.raises(BadProducerName):
        check_producer_name(name)


@pytest.mark.parametrize("name", ["plant.relay", "plant.operations", "plant.x"])
def test_names_of_plant_itself_are_reserved(name: str) -> None:
    """Records with such a name would look as if Plant had sent them."""
    with pytest.raises(BadProducerName, match=r"can't be a producer's name.*Plant's own") as caught:
        check_producer_name(name)
    assert caught.value.exit_code == 2
    assert check_producer_name("plant") == "plant"
    assert check_producer_name("plants.x") == "plants.x"


def test_a_key_has_a_state() -> None:
    """active, pending, expired or revoked."""
    key = StoredKey(id=uuid4(), producer="p", created_at=NOW, not_before=NOW, expires_at=None, revoked_at=None)
    changed = msgspec.structs.replace
    assert key.state(NOW) == "active"
    assert key.state(NOW - timedelta(1)) == "pending"
    assert changed(key, expires_at=NOW).state(NOW) == "expired"
    assert changed(key, expires_at=NOW, revoked_at=NOW).state(NOW) == "revoked"


def row(secret: bytes, **changes: Any) -> dict[str, Any]:
    """A row of `webhook_signatures` whose ciphertext was made by the formula."""
    key_id = UUID("72d76358-5032-530d-b5a7-ee89ea19f5a4")
    associated_data = b"plant.webhook_signatures.v1\n72d76358-5032-530d-b5a7-ee89ea19f5a4\ngenesis"
    return {
        "id": key_id,
        "producer": "genesis",
        "scheme": "v1",
        "nonce": bytes(12),
        "ciphertext": AESGCM(bytes(32)).encrypt(bytes(12), secret, associated_data),
        "public_key": None,
        "created_at": NOW,
        "not_before": NOW,
        "expires_at": None,
        **changes,
    }


def test_a_stored_secret_is_bound_to_its_key_and_producer() -> None:
    """What earlier releases stored still decrypts; in the row of another key or producer it does not."""
    secret = bytes(range(32))
    usable = store()._usable_key
    key = usable(row(secret))  # type: ignore[arg-type]  # a row is a mapping
    assert key == HmacKey(id="72d76358-5032-530d-b5a7-ee89ea19f5a4", owner="genesis", secret=secret)
    assert usable(row(secret, producer="other")) is None  # type: ignore[arg-type]
    assert usable(row(secret, id=uuid4())) is None  # type: ignore[arg-type]


def test_a_key_begins_and_ends_when_its_row_says() -> None:
    """A key without a later beginning is valid at once, even where Postgres's clock is ahead of ours."""
    usable, later = store()._usable_key, NOW + timedelta(hours=1)
    at_once = usable(row(bytes(32)))  # type: ignore[arg-type]
    bounded = usable(row(bytes(32), not_before=later, expires_at=later + timedelta(hours=1)))  # type: ignore[arg-type]
    assert at_once is not None
    assert bounded is not None
    assert (at_once.not_before, at_once.expires_at) == (0.0, None)
    assert (bounded.not_before, bounded.expires_at) == (later.timestamp(), later.timestamp() + 3600)


def keyring_of(*keys: Key) -> Keyring:
    keyring = Keyring(store(), FixedClock(NOW))
    keyring.keys, keyring.loaded = keys, True
    return keyring


def key_of(owner: str) -> HmacKey:
    return HmacKey(id=owner, owner=owner, secret=owner.encode() * 32)


def verify(keyring: Keyring, signer: HmacKey, producer: str | None = None) -> Verified | SignatureRejected:
    signature = sign(signer.secret, b"msg_1", TIMESTAMP, b"{}")
    return keyring.verify(b"msg_1", TIMESTAMP, signature, b"{}", producer)


def test_the_key_that_matched_is_tried_first_next_time() -> None:
    """Without a named producer; the others keep their order."""
    a, b, c = map(key_of, "abc")
    keyring = keyring_of(a, b, c)
    assert verify(keyring, c) == Verified(c)
    assert list(keyring.keys) == [c, a, b]


def test_a_named_producer_has_only_its_own_keys_tried() -> None:
    """A signature of one producer under the name of another is refused."""
    a, b = map(key_of, "ab")
    keyring = keyring_of(a, b)
    assert verify(keyring, b, "b") == Verified(b)
    assert verify(keyring, b, "a") == SignatureRejected("no_match")
    assert verify(keyring, b, "nobody") == SignatureRejected("no_match")


def test_signatures_are_as_old_as_the_clock_says() -> None:
    """The keyring's clock decides, not the system's."""
    a = key_of("a")
    clock = FixedClock(NOW)
    keyring = Keyring(store(), clock)
    keyring.keys = (a,)
    assert verify(keyring, a) == Verified(a)
    clock.set(NOW + timedelta(minutes=6))
    assert verify(keyring, a) == SignatureRejected("too_old")


def test_a_producer_without_a_policy_has_the_default_under_its_own_name() -> None:
    """So that its rate is its own."""
    default = ProducerPolicy(name="", event_types=None, rate_per_second=7, burst=3, disabled=False)
    keyring = Keyring(store(), FixedClock(NOW), default)
    assert keyring.policy("x") == msgspec.structs.replace(default, name="x")
