"""Secrets at rest: what opens them, and what is a master key."""

from __future__ import annotations

import base64
import secrets

import pytest

from runtime.settings import Settings
from signing.errors import MasterKeyUnusable, SecretUnreadable
from signing.master_key import MasterKey


def master_key(key: bytes | None = None) -> MasterKey:
    return MasterKey(Settings(master_key=base64.b64encode(key or secrets.token_bytes(32)).decode()))


def test_secrets_are_bound_to_their_row_and_master_key() -> None:
    """A ciphertext opens with its master key, for its row, and nowhere else."""
    master, secret = master_key(), secrets.token_bytes(32)
    nonce, ciphertext = master.encrypt(secret, b"keys\n1")
    assert master.decrypt(nonce, ciphertext, b"keys\n1") == secret
    assert secret not in ciphertext
    for other, row in ((master, b"keys\n2"), (master, b""), (master_key(), b"keys\n1")):
        with pytest.raises(SecretUnreadable):
            other.decrypt(nonce, ciphertext, row)


def test_a_nonce_is_used_once() -> None:
    """The same secret encrypted twice has two nonces and two ciphertexts."""
    master = master_key()
    assert len({value for _ in range(100) for value in master.encrypt(bytes(32), b"row")}) == 200


@pytest.mark.parametrize("value", ["", "short", base64.b64encode(bytes(31)).decode(), "!" * 44])
def test_a_bad_master_key_is_refused(value: str) -> None:
    """Only 32 bytes in base64 are a master key."""
    with pytest.raises(MasterKeyUnusable):
        MasterKey(Settings(master_key=value))
