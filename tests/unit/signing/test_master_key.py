"""Secrets at rest: what opens them, and what is a master key."""

from __future__ import annotations

import base64
import secrets

import pytest

from runtime.settings import Settings
from signing.errors import MasterKeyUnusable, SecretUnreadable
from signing.master_key import MasterKeys


def base64_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def master_key() -> MasterKeys:
    return MasterKeys(Settings(master_key=base64_key()))


def test_secrets_are_bound_to_their_row_and_master_key() -> None:
    """A ciphertext opens with its master key, for its row, and nowhere else."""
    master, secret = master_key(), secrets.token_bytes(32)
    nonce, ciphertext = master.newest.encrypt(secret, b"keys\n1")
    assert master.decrypt(nonce, ciphertext, b"keys\n1") == secret
    assert secret not in ciphertext
    for other, row in ((master, b"keys\n2"), (master, b""), (master_key(), b"keys\n1")):
        with pytest.raises(SecretUnreadable):
            other.decrypt(nonce, ciphertext, row)


def test_a_nonce_is_used_once() -> None:
    """The same secret encrypted twice has two nonces and two ciphertexts."""
    master = master_key()
    assert len({value for _ in range(100) for value in master.newest.encrypt(bytes(32), b"row")}) == 200


@pytest.mark.parametrize("value", ["", "short", base64.b64encode(bytes(31)).decode(), "!" * 44])
def test_a_bad_master_key_is_refused(value: str) -> None:
    """Only 32 bytes in base64 are a master key, and nobody is told to make another one: it would open no secret."""
    with pytest.raises(MasterKeyUnusable) as error:
        MasterKeys(Settings(master_key=value)).require()
    assert "PLANT_MASTER_KEY" in str(error.value)
    assert not {"openssl", "urandom", "random)"} & set(f"{error.value.why} {error.value.next_step}".split())
    if value:
        with pytest.raises(MasterKeyUnusable, match="PREVIOUS"):
            MasterKeys(Settings(master_key=base64_key(), master_key_previous=value)).require()


def test_white_space_around_a_master_key_is_dropped() -> None:
    """A value that comes from a file ends in a newline."""
    text = base64_key()
    plain, padded = (MasterKeys(Settings(master_key=each)).newest for each in (text, f" {text}\n"))
    assert plain.check_value == padded.check_value


def test_two_master_keys_are_accepted_while_one_replaces_the_other() -> None:
    """Secrets of either open, new ones are of the key that is asked for, and a third key is none of them."""
    old, new = base64_key(), base64_key()
    before, both = MasterKeys(Settings(master_key=old)), MasterKeys(Settings(master_key=new, master_key_previous=old))
    for key in (before.newest, both.newest):
        assert both.decrypt(*key.encrypt(b"secret", b"row"), b"row") == b"secret"
        assert both.of(key.check_value) is not None
    assert both.of(before.newest.check_value) is both.previous
    assert both.of(master_key().newest.check_value) is None
    with pytest.raises(SecretUnreadable):
        before.decrypt(*both.newest.encrypt(b"secret", b"row"), b"row")


def test_what_needs_no_master_key_works_without_one() -> None:
    """It is read when a secret is opened or encrypted, and not before."""
    keys = MasterKeys(Settings())
    with pytest.raises(MasterKeyUnusable, match="not set"):
        keys.decrypt(bytes(12), bytes(32), b"row")
