"""The secrets of `v1` signatures: making one, and its form `whsec_…`.

    whsec_ + base64(secret of 24 to 64 bytes)

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import binascii
import secrets
from typing import Final

from signing.signatures import decode_base64

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 (how a secret begins, not a secret)
SECRET_MIN_BYTES: Final = 24
SECRET_MAX_BYTES: Final = 64
NEW_SECRET_BYTES: Final = 32


def new_secret() -> bytes:
    """Return a random secret."""
    return secrets.token_bytes(NEW_SECRET_BYTES)


def decode_secret(secret: str) -> bytes:
    """Return the bytes of a `whsec_…` secret. Raises ValueError, which does not repeat it, where it is not one.

    >>> len(decode_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    24
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError("a secret starts with whsec_")
    key = decode_base64("a secret", secret[len(SECRET_PREFIX) :])
    if not SECRET_MIN_BYTES <= len(key) <= SECRET_MAX_BYTES:
        raise ValueError(f"a secret holds {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes")
    return key


def encode_secret(key: bytes) -> str:
    """Return the `whsec_…` form of a secret.

    >>> encode_secret(bytes(24))
    'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
    """
    return SECRET_PREFIX + binascii.b2a_base64(key, newline=False).decode("ascii")
