"""Secrets at rest: AES-256-GCM under PLANT_MASTER_KEY.

    ciphertext = AES-256-GCM(master key, nonce of 12 random bytes, secret, associated data)

The associated data names the row that keeps the ciphertext, so that it decrypts nowhere else.

Source: NIST SP 800-38D
"""

from __future__ import annotations

import binascii
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.settings import Settings
from signing.errors import MasterKeyUnusable, SecretUnreadable

NONCE_BYTES: Final = 12


class MasterKey:
    """The key that encrypts and decrypts secrets which are stored. Raises MasterKeyUnusable where it is not one."""

    def __init__(self, settings: Settings) -> None:
        try:
            key = binascii.a2b_base64(settings.master_key, strict_mode=True)
        except ValueError:
            key = b""
        if len(key) != 32:
            raise MasterKeyUnusable(
                why="PLANT_MASTER_KEY must hold 32 random bytes in base64.",
                next_step="export PLANT_MASTER_KEY=$(head -c 32 /dev/urandom | base64)",
            )
        self._cipher = AESGCM(key)

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
                why="It was written under another PLANT_MASTER_KEY, or changed since.", next_step="plant keys list"
            ) from None
