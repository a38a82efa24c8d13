"""Secrets at rest: AES-256-GCM under PLANT_MASTER_KEY.

    ciphertext  = AES-256-GCM(master key, nonce of 12 random bytes, secret, associated data)
    check value = HMAC-SHA256(master key, "plant.master_key.check.v1")

The associated data names the row that keeps the ciphertext, so that it decrypts nowhere else. The check value tells
master keys apart, and none can be computed from it.

Source: NIST SP 800-38D, RFC 2104
"""

from __future__ import annotations

import binascii
import hmac
import os
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.settings import Settings
from signing.errors import MasterKeyUnusable, SecretUnreadable

NONCE_BYTES: Final = 12
CHECKED_CONTENT: Final = b"plant.master_key.check.v1"
FINGERPRINT_CHARACTERS: Final = 8


class MasterKey:
    """32 bytes that encrypt and decrypt secrets which are stored."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.check_value: Final = hmac.digest(key, CHECKED_CONTENT, "sha256")

    def encrypt(self, secret: bytes, associated_data: bytes) -> tuple[bytes, bytes]:
        """Return a new nonce and the ciphertext."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce, self._cipher.encrypt(nonce, secret, associated_data)

    def decrypt(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
        """Return the secret. Raises SecretUnreadable where the ciphertext belongs to another key, row or nonce."""
        try:
            return self._cipher.decrypt(nonce, ciphertext, associated_data)
        except InvalidTag:
            raise SecretUnreadable(
                why="It was written under another PLANT_MASTER_KEY, or changed since.", next_step="plant doctor"
            ) from None


class MasterKeys:
    """The master key of the settings, and the one before it while secrets are being changed over.

    Both are read when they are first needed: what needs no master key works without one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def newest(self) -> MasterKey:
        """The key of PLANT_MASTER_KEY. Raises MasterKeyUnusable."""
        return _master_key("PLANT_MASTER_KEY", self._settings.master_key)

    @cached_property
    def previous(self) -> MasterKey | None:
        """The key of PLANT_MASTER_KEY_PREVIOUS, None where that is not set. Raises MasterKeyUnusable."""
        text = self._settings.master_key_previous
        return _master_key("PLANT_MASTER_KEY_PREVIOUS", text) if text else None

    def require(self) -> MasterKeys:
        """Return them once both were read. Raises MasterKeyUnusable."""
        self.accepted()
        return self

    def accepted(self) -> list[MasterKey]:
        """Return the keys that may decrypt, the newest first."""
        return [self.newest] if self.previous is None else [self.newest, self.previous]

    def of(self, check_value: bytes) -> MasterKey | None:
        """Return the accepted key with this check value, None where no accepted one has it."""
        return next((key for key in self.accepted() if hmac.compare_digest(key.check_value, check_value)), None)

    def decrypt(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
        """Return the secret, by whichever of the keys it was written under. Raises SecretUnreadable."""
        if self.previous is not None:
            try:
                return self.newest.decrypt(nonce, ciphertext, associated_data)
            except SecretUnreadable:
                return self.previous.decrypt(nonce, ciphertext, associated_data)
        return self.newest.decrypt(nonce, ciphertext, associated_data)


def fingerprint(check_value: bytes) -> str:
    """Return the part of a check value that people compare.

    >>> fingerprint(MasterKey(bytes(32)).check_value)
    '49057e55'
    """
    return check_value.hex()[:FINGERPRINT_CHARACTERS]


def _master_key(variable: str, text: str) -> MasterKey:
    if not text:
        raise MasterKeyUnusable(
            f"{variable} is not set.",
            why="Stored secrets open under the master key that they were encrypted under, and under no other.",
            next_step=f"export {variable}=…    # as it was when the keys were made",
        )
    try:
        key = binascii.a2b_base64(text.strip(), strict_mode=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise MasterKeyUnusable(
            f"{variable} is no master key.",
            why="A master key is 32 random bytes in base64; a part of this one may be missing.",
            next_step=f"export {variable}=…    # in full, as it was when the keys were made",
        )
    return MasterKey(key)
