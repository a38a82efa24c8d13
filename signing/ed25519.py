"""The keys of `v1a` signatures: making a pair, the forms `whsk_…` (private) and `whpk_…` (public), and signing.

    whsk_ + base64(seed of 32 bytes + public key of 32 bytes), or base64(seed) alone
    whpk_ + base64(public key of 32 bytes)

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, RFC 8032
"""

from __future__ import annotations

import binascii
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from signing.signatures import decode_base64, signed_content

PRIVATE_PREFIX: Final = "whsk_"
PUBLIC_PREFIX: Final = "whpk_"
BYTES: Final = 32

_PRIME: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _PRIME) % _PRIME


class PrivateKey(msgspec.Struct, frozen=True):
    """A key pair, made from its seed. Its repr shows the public key only."""

    seed: bytes

    @property
    def public_key(self) -> bytes:
        """The public key: 32 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def sign(self, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
        """Return the `v1a` signature of a message, as it stands in the `webhook-signature` header.

        >>> PrivateKey(bytes(32)).sign(b"msg_1", b"1763884800", b"{}")[:24]
        b'v1a,B+Q5IlPwRN5er1MBX5Zh'
        """
        content = signed_content(message_id, timestamp, body)
        signature = Ed25519PrivateKey.from_private_bytes(self.seed).sign(content)
        return b"v1a," + binascii.b2a_base64(signature, newline=False)

    def __repr__(self) -> str:
        return f"PrivateKey({encode_public_key(self.public_key)})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("public_key", encode_public_key(self.public_key))]


def new_private_key() -> PrivateKey:
    """Return a random pair."""
    return PrivateKey(Ed25519PrivateKey.generate().private_bytes_raw())


def encode_private_key(key: PrivateKey) -> str:
    """Return the `whsk_…` form, of 64 bytes.

    >>> encode_private_key(PrivateKey(bytes(32)))
    'whsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA7aie8zrakLWKjqNAqbw1zZTIVdx3iQ6Y6wEihi1naKQ=='
    """
    return PRIVATE_PREFIX + _base64(key.seed + key.public_key)


def decode_private_key(text: str) -> PrivateKey:
    """Return the pair of a `whsk_…` text. Raises ValueError, which does not repeat it, where it is not one.

    >>> decode_private_key(encode_private_key(PrivateKey(bytes(32)))) == PrivateKey(bytes(32))
    True
    """
    if not text.startswith(PRIVATE_PREFIX):
        raise ValueError("a private key starts with whsk_")
    decoded = decode_base64("a private key", text[len(PRIVATE_PREFIX) :])
    if len(decoded) not in (BYTES, 2 * BYTES):
        raise ValueError(f"a private key holds {BYTES} or {2 * BYTES} bytes")
    key = PrivateKey(decoded[:BYTES])
    if decoded[BYTES:] not in (b"", key.public_key):
        raise ValueError("a private key of 64 bytes ends in its own public key")
    return key


def encode_public_key(public_key: bytes) -> str:
    """Return the `whpk_…` form of 32 bytes.

    >>> encode_public_key(PrivateKey(bytes(32)).public_key)
    'whpk_O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik='
    """
    return PUBLIC_PREFIX + _base64(public_key)


def decode_public_key(text: str) -> bytes:
    """Return the 32 bytes of a `whpk_…` text. Raises ValueError, which does not repeat it: it may be a private key.

    Bytes that no private key belongs to are refused, and so are the few keys that verify signatures nobody made.
    """
    if text.startswith(PRIVATE_PREFIX):
        raise ValueError("a public key starts with whpk_; this is a private key, which its owner keeps")
    if not text.startswith(PUBLIC_PREFIX):
        raise ValueError("a public key starts with whpk_")
    public_key = decode_base64("a public key", text[len(PUBLIC_PREFIX) :])
    if len(public_key) != BYTES:
        raise ValueError(f"a public key holds {BYTES} bytes")
    if not _is_valid_point(public_key):
        raise ValueError("a public key is a point of the curve, and not one of small order")
    return public_key


def _is_valid_point(public_key: bytes) -> bool:
    """Return whether it is the one encoding of a point whose order is not 1, 2, 4 or 8. RFC 8032, 5.1.3."""
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if y >= _PRIME:
        return False
    for _ in range(3):  # doubled three times, a point of small order is the neutral element, whose y is 1
        y_squared = y * y % _PRIME
        x_squared = (y_squared - 1) * pow(_D * y_squared + 1, -1, _PRIME) % _PRIME
        if pow(x_squared, (_PRIME - 1) // 2, _PRIME) not in (0, 1):
            return False  # no x belongs to this y
        y = (y_squared + x_squared) * pow(1 - _D * x_squared * y_squared, -1, _PRIME) % _PRIME
    return y != 1


def _base64(decoded: bytes) -> str:
    return binascii.b2a_base64(decoded, newline=False).decode("ascii")
