"""Standard Webhooks signatures, version `v1` (HMAC-SHA256). Pure: no clock, no input, no output.

    signature = "v1," + base64(HMAC-SHA256(key, id + "." + timestamp + "." + body))

The key is what follows `whsec_` in a secret, decoded from base64.
Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Iterable
from typing import Final, Literal, assert_never

import msgspec

TOLERANCE_SECONDS: Final = 5 * 60
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 (how a secret begins, not a secret)
KEY_MIN_BYTES: Final = 24
KEY_MAX_BYTES: Final = 64
SIGNATURES_MAX: Final = 16

Reason = Literal["malformed_timestamp", "too_old", "too_new", "no_v1_signature", "too_many_signatures", "no_match"]


class Key(msgspec.Struct, frozen=True):
    """A producer's key, decrypted. Times are UTC seconds since 1970; `expires_at` None: never."""

    id: str
    producer: str
    secret: bytes
    not_before: float = 0.0
    expires_at: float | None = None

    def usable(self, now_seconds: float) -> bool:
        """Whether the key may be used at this time."""
        return self.not_before <= now_seconds and (self.expires_at is None or now_seconds < self.expires_at)


class Verified(msgspec.Struct, frozen=True):
    """The message was signed by this key's producer."""

    key: Key


class Rejected(msgspec.Struct, frozen=True):
    """The message was not accepted; the reason is for the log, never for the sender."""

    reason: Reason


def sign(secret: bytes, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    """The `v1` signature of a message, as it stands in the `webhook-signature` header.

    >>> secret = decode_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    >>> sign(secret, b"msg_p5jXN8AQM9LWM0D4loKWxJek", b"1614265330", b'{"test": 2432232314}')
    b'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    digest = hmac.digest(secret, b"%b.%b.%b" % (message_id, timestamp, body), "sha256")
    return b"v1," + binascii.b2a_base64(digest, newline=False)


def verify(
    keys: Iterable[Key], message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes, now_seconds: float
) -> Verified | Rejected:
    """Which key signed the message, if one did.

    `signatures` is the header: several may stand there, parted by spaces; those of other versions are passed over.
    Each usable key is tried against each signature, and a wrong one takes as long as a right one.
    """
    fault = _timestamp_fault(timestamp, now_seconds)
    if fault is not None:
        return Rejected(fault)
    offered = [signature for signature in signatures.split(b" ") if signature.startswith(b"v1,")]
    if not offered:
        return Rejected("no_v1_signature")
    if len(offered) > SIGNATURES_MAX:
        return Rejected("too_many_signatures")
    for key in keys:
        if key.usable(now_seconds):
            expected = sign(key.secret, message_id, timestamp, body)
            for signature in offered:
                if hmac.compare_digest(expected, signature):
                    return Verified(key)
    return Rejected("no_match")


def decode_secret(secret: str) -> bytes:
    """The key bytes of a `whsec_…` secret; raises ValueError where it is not one, without repeating it.

    >>> len(decode_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    24
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError("a secret starts with whsec_")
    try:
        key = binascii.a2b_base64(secret[len(SECRET_PREFIX) :], strict_mode=True)
    except ValueError:
        raise ValueError("a secret is base64 after whsec_") from None
    if not KEY_MIN_BYTES <= len(key) <= KEY_MAX_BYTES:
        raise ValueError(f"a secret holds {KEY_MIN_BYTES} to {KEY_MAX_BYTES} bytes")
    return key


def encode_secret(key: bytes) -> str:
    """The `whsec_…` form of key bytes.

    >>> encode_secret(bytes(24))
    'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
    """
    return SECRET_PREFIX + binascii.b2a_base64(key, newline=False).decode("ascii")


def explain(reason: Reason) -> str:
    """The reason in words, for the log."""
    match reason:
        case "malformed_timestamp":
            return "webhook-timestamp is not a whole number of seconds"
        case "too_old":
            return f"webhook-timestamp is more than {TOLERANCE_SECONDS} s in the past"
        case "too_new":
            return f"webhook-timestamp is more than {TOLERANCE_SECONDS} s in the future"
        case "no_v1_signature":
            return "webhook-signature holds no v1 signature"
        case "too_many_signatures":
            return f"webhook-signature holds more than {SIGNATURES_MAX} signatures"
        case "no_match":
            return "no usable key made any of the signatures"
        case _:
            assert_never(reason)


def _timestamp_fault(timestamp: bytes, now_seconds: float) -> Reason | None:
    """None for a timestamp within the tolerance. Digits only: no sign, space, fraction or exponent."""
    if not timestamp.isdigit() or len(timestamp) > 12:
        return "malformed_timestamp"
    age_seconds = now_seconds - int(timestamp)
    if age_seconds > TOLERANCE_SECONDS:
        return "too_old"
    if age_seconds < -TOLERANCE_SECONDS:
        return "too_new"
    return None
