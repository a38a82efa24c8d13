"""Standard Webhooks signatures: `v1` (HMAC-SHA256) and `v1a` (ed25519). Pure: no clock, no input, no output.

    content       = id + "." + timestamp + "." + body
    v1 signature  = "v1,"  + base64(HMAC-SHA256(key, content))
    v1a signature = "v1a," + base64(ed25519(private key, content))

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, assert_never

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TOLERANCE_SECONDS: Final = 5 * 60
SIGNATURES_MAX: Final = 16
ED25519_CHECKS_MAX: Final = 32
"""Most ed25519 verifications a request may cost, about 0.1 ms each; signatures times keys that could have made them."""

Scheme = Literal["v1", "v1a"]
RejectionReason = Literal[
    "malformed_timestamp",
    "too_old",
    "too_new",
    "no_known_signature",
    "too_many_signatures",
    "too_many_checks",
    "too_many_tries",
    "unknown_producer",
    "no_match",
]

_HMAC_UNPADDED: Final = 43
_ED25519_UNPADDED: Final = 86


class _OwnedKey(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    owner: str
    not_before: float = 0.0
    expires_at: float | None = None

    def usable(self, now_seconds: float) -> bool:
        """Return whether the key may be used at this time."""
        return self.not_before <= now_seconds and (self.expires_at is None or now_seconds < self.expires_at)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id}, {self.owner})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("id", self.id), ("owner", self.owner)]


class HmacKey(_OwnedKey, frozen=True, kw_only=True):
    """A secret shared with its owner, for `v1`. Times are UTC seconds since 1970; `expires_at` None: never."""

    secret: bytes


class Ed25519Key(_OwnedKey, frozen=True, kw_only=True):
    """The public half of its owner's key pair, for `v1a`: 32 bytes."""

    public_key: bytes


Key: TypeAlias = HmacKey | Ed25519Key


class Verified(msgspec.Struct, frozen=True):
    """A message that the owner of this key signed."""

    key: Key


class SignatureRejected(msgspec.Struct, frozen=True):
    """A message that was not accepted. The reason is for the log, never for the sender."""

    reason: RejectionReason


def signed_content(message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    """Return the bytes that both kinds of signature cover."""
    return b"%b.%b.%b" % (message_id, timestamp, body)


def sign(secret: bytes, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    """Return the `v1` signature of a message, as it stands in the `webhook-signature` header.

    >>> secret = decode_base64("the secret", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    >>> sign(secret, b"msg_p5jXN8AQM9LWM0D4loKWxJek", b"1614265330", b'{"test": 2432232314}')
    b'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    return b"v1," + _hmac(secret, signed_content(message_id, timestamp, body))


def refuse_unread(timestamp: bytes, signatures: bytes, now_seconds: float) -> SignatureRejected | None:
    """Return why a message is not accepted whatever its body is, None where a body could make it acceptable."""
    fault = _timestamp_fault(timestamp, now_seconds)
    return SignatureRejected(fault) if fault is not None else _offer_fault(*_offered(signatures))


def verify_signature(
    keys: Iterable[Key], message_id: bytes, timestamp: bytes, signatures: bytes, body: bytes, now_seconds: float
) -> Verified | SignatureRejected:
    """Return the key that signed the message, or why none is accepted. Never raises.

    `signatures` is the header: it may hold several, separated by spaces. Those of other versions are skipped, and
    base64's padding may be left out. Each usable key is tried, in the order of `keys`, against the signatures of its
    own scheme; HMAC first, where a wrong signature takes as long as a right one. There are at most
    :data:`ED25519_CHECKS_MAX` ed25519 verifications; a message that would need more is not accepted.
    """
    fault = _timestamp_fault(timestamp, now_seconds)
    if fault is not None:
        return SignatureRejected(fault)
    v1, v1a = _offered(signatures)
    rejected = _offer_fault(v1, v1a)
    if rejected is not None:
        return rejected
    content = signed_content(message_id, timestamp, body)
    usable = [key for key in keys if key.usable(now_seconds)]
    hmac_key = _match_hmac([key for key in usable if isinstance(key, HmacKey)], v1, content)
    if hmac_key is not None:
        return Verified(hmac_key)
    return _match_ed25519([key for key in usable if isinstance(key, Ed25519Key)], v1a, content)


def decode_base64(what: str, text: str) -> bytes:
    """Return the bytes of base64, whose padding may be left out, as the public libraries allow.

    Raises ValueError, which names `what` and never repeats the text, for every text that could be read in two ways:
    other alphabets, white space, some padding or too much, a last character whose spare bits are set.

    >>> decode_base64("it", "AAE="), decode_base64("it", "AAE")
    (b'\\x00\\x01', b'\\x00\\x01')
    >>> decode_base64("it", "AAF")
    Traceback (most recent call last):
    ValueError: it is not base64: its last character says more than there are bytes
    """
    padded = text if text.endswith("=") else text + "=" * (-len(text) % 4)
    try:
        decoded = binascii.a2b_base64(padded, strict_mode=True)
    except ValueError:
        raise ValueError(f"{what} is not base64, or a part of it is missing") from None
    if binascii.b2a_base64(decoded, newline=False).decode("ascii") != padded:
        raise ValueError(f"{what} is not base64: its last character says more than there are bytes")
    return decoded


def explain(reason: RejectionReason) -> str:
    """Return the reason in words, for the log."""
    match reason:
        case "malformed_timestamp":
            return "webhook-timestamp is not a whole number of seconds"
        case "too_old":
            return f"webhook-timestamp is more than {TOLERANCE_SECONDS} s in the past"
        case "too_new":
            return f"webhook-timestamp is more than {TOLERANCE_SECONDS} s in the future"
        case "no_known_signature":
            return "webhook-signature holds no v1 or v1a signature"
        case "too_many_signatures":
            return f"webhook-signature holds more than {SIGNATURES_MAX} signatures"
        case "too_many_checks":
            return f"none of the first {ED25519_CHECKS_MAX} pairs of v1a key and signature matched, and there are more"
        case "too_many_tries":
            return "none of the first keys made any of the signatures, and the body is too large to try all of them"
        case "unknown_producer":
            return "plant-producer names nobody who has a usable key"
        case "no_match":
            return "no usable key made any of the signatures"
        case _:
            assert_never(reason)


def _offered(signatures: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the base64 of the v1 signatures and of the v1a signatures, padded."""
    v1, v1a = [], []
    for signature in signatures.split(b" "):
        version, _, text = signature.partition(b",")
        if version == b"v1":
            v1.append(text + b"=" if len(text) == _HMAC_UNPADDED else text)
        elif version == b"v1a":
            v1a.append(text + b"==" if len(text) == _ED25519_UNPADDED else text)
    return v1, v1a


def _offer_fault(v1: list[bytes], v1a: list[bytes]) -> SignatureRejected | None:
    """Return what is wrong with the number of signatures."""
    if not v1 and not v1a:
        return SignatureRejected("no_known_signature")
    return SignatureRejected("too_many_signatures") if len(v1) + len(v1a) > SIGNATURES_MAX else None


def _match_hmac(keys: list[HmacKey], offered: list[bytes], content: bytes) -> HmacKey | None:
    if offered:
        for key in keys:
            expected = _hmac(key.secret, content)
            for signature in offered:
                if hmac.compare_digest(expected, signature):
                    return key
    return None


def _match_ed25519(keys: list[Ed25519Key], offered: list[bytes], content: bytes) -> Verified | SignatureRejected:
    signatures = [signature for text in offered if (signature := _ed25519_signature(text)) is not None]
    checks = 0
    for key in keys:
        for signature in signatures:
            if checks == ED25519_CHECKS_MAX:
                return SignatureRejected("too_many_checks")
            checks += 1
            try:
                Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, content)
            except (InvalidSignature, ValueError):  # ValueError: not 32 bytes, which the table refuses
                continue
            return Verified(key)
    return SignatureRejected("no_match")


def _hmac(secret: bytes, content: bytes) -> bytes:
    return binascii.b2a_base64(hmac.digest(secret, content, "sha256"), newline=False)


def _ed25519_signature(text: bytes) -> bytes | None:
    """Return the 64 bytes of a signature, or None: only one text stands for them, so that no byte of it can change."""
    try:
        signature = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None
    return signature if len(signature) == 64 and binascii.b2a_base64(signature, newline=False) == text else None


def _timestamp_fault(timestamp: bytes, now_seconds: float) -> RejectionReason | None:
    """Return None for a timestamp within the tolerance. It has digits only: no sign, space, fraction or exponent."""
    if not timestamp.isdigit() or len(timestamp) > 12:
        return "malformed_timestamp"
    age_seconds = now_seconds - int(timestamp)
    if age_seconds > TOLERANCE_SECONDS:
        return "too_old"
    if age_seconds < -TOLERANCE_SECONDS:
        return "too_new"
    return None
