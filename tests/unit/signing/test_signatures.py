"""Standard Webhooks signatures of version v1: our vectors, the public package, and what must never pass."""

from __future__ import annotations

import base64
import doctest
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from signing import hmac_secrets
from signing import signatures as verification
from signing.hmac_secrets import decode_secret, encode_secret
from signing.signatures import (
    SIGNATURES_MAX,
    TOLERANCE_SECONDS,
    Ed25519Key,
    HmacKey,
    Key,
    RejectionReason,
    SignatureRejected,
    Verified,
    decode_base64,
    explain,
    refuse_unread,
    sign,
    verify_signature,
)

VECTORS = json.loads((Path(verification.__file__).parent / "vectors" / "standard_webhooks.json").read_text())["cases"]
NOW = 1_763_884_800
KEY = HmacKey(id="k1", owner="genesis", secret=bytes(range(32)))
OTHER = HmacKey(id="k2", owner="other", secret=bytes(32))


def key_of(secret: bytes) -> HmacKey:
    return HmacKey(id="k", owner="p", secret=secret)


def check(
    keys: Sequence[Key] | None = None,
    message_id: bytes = b"msg_1",
    timestamp: bytes = str(NOW).encode(),
    signatures: bytes | None = None,
    body: bytes = b"{}",
    now: float = NOW,
) -> Verified | SignatureRejected:
    if signatures is None:
        signatures = sign(KEY.secret, message_id, timestamp, body)
    return verify_signature([KEY] if keys is None else keys, message_id, timestamp, signatures, body, now)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_vectors_are_judged_as_they_say(vector: dict[str, str]) -> None:
    """Each vector is accepted or refused as it says."""
    key = key_of(decode_secret(vector["secret"]))
    verdict = verify_signature(
        [key],
        vector["id"].encode(),
        vector["timestamp"].encode(),
        vector["signature"].encode(),
        vector["body"].encode(),
        int(vector["timestamp"]),
    )
    assert isinstance(verdict, Verified) == vector["valid"]


@given(
    secret=st.binary(min_size=24, max_size=64), message_id=st.from_regex(r"[!-~]{1,40}", fullmatch=True), body=st.text()
)
def test_the_public_package_signs_what_we_verify(secret: bytes, message_id: str, body: str) -> None:
    """Whatever the public package signs is verified here, and what we sign is the same signature."""
    encoded = body.encode("utf-8", "replace")
    theirs = Webhook(secret).sign(message_id, datetime.fromtimestamp(NOW, UTC), encoded.decode())
    assert theirs.encode() == sign(secret, message_id.encode(), str(NOW).encode(), encoded)
    key = key_of(secret)
    assert isinstance(check([key], message_id.encode(), signatures=theirs.encode(), body=encoded), Verified)


def test_the_public_package_verifies_what_we_sign() -> None:
    """A webhook signed here passes the public package's own check, and a changed one does not."""
    timestamp = str(int(datetime.now(UTC).timestamp()))
    signature = sign(KEY.secret, b"msg_1", timestamp.encode(), b'{"a": 1}').decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": signature}
    assert Webhook(encode_secret(KEY.secret)).verify('{"a": 1}', headers) == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(encode_secret(KEY.secret)).verify('{"a": 2}', headers)


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=10_000), st.integers(min_value=1, max_value=255))
def test_a_changed_body_never_passes(body: bytes, at: int, flip: int) -> None:
    """Any changed byte of the body makes the signature worthless."""
    signature = sign(KEY.secret, b"msg_1", str(NOW).encode(), body)
    changed = bytearray(body or b"x")
    changed[at % len(changed)] ^= flip if body else 0
    assert check(signatures=signature, body=bytes(changed)) == SignatureRejected("no_match")


@pytest.mark.parametrize(
    ("age_seconds", "reason"),
    [
        (TOLERANCE_SECONDS, None),
        (TOLERANCE_SECONDS + 1, "too_old"),
        (-TOLERANCE_SECONDS, None),
        (-TOLERANCE_SECONDS - 1, "too_new"),
    ],
)
def test_the_timestamp_is_tolerated_for_five_minutes_both_ways(age_seconds: int, reason: str | None) -> None:
    """Five minutes either way pass, a second more does not."""
    verdict = check(now=NOW + age_seconds)
    assert (verdict.reason if isinstance(verdict, SignatureRejected) else None) == reason


@pytest.mark.parametrize("timestamp", [b"", b"1763884800.0", b"+1763884800", b"-1", b" 1763884800", b"1e9", b"1" * 13])
def test_only_whole_seconds_are_timestamps(timestamp: bytes) -> None:
    """Signs, fractions, exponents, spaces and absurd lengths are malformed, though they were signed."""
    assert check(timestamp=timestamp) == SignatureRejected("malformed_timestamp")
    assert check(timestamp=b"1" * 12) == SignatureRejected("too_new")


def test_any_of_several_keys_and_signatures_may_match() -> None:
    """While keys are rotated, either key's signature passes, wherever it stands in the header."""
    good = sign(KEY.secret, b"msg_1", str(NOW).encode(), b"{}")
    verdict = check([OTHER, KEY], signatures=b"v1a,abc v1,AAAA " + good)
    assert verdict == Verified(KEY)


def test_keys_count_only_in_their_time() -> None:
    """A key is refused before it begins and from the moment it expires."""
    key = HmacKey(id="k", owner="p", secret=KEY.secret, not_before=NOW, expires_at=NOW + 10)
    assert isinstance(check([key], now=NOW + 9), Verified)
    assert check([key], now=NOW + 10) == SignatureRejected("no_match")
    assert check([key], now=NOW - 1) == SignatureRejected("no_match")


def test_a_flood_of_signatures_is_refused_unread() -> None:
    """More signatures than anyone needs are refused, though one is right."""
    good = sign(KEY.secret, b"msg_1", str(NOW).encode(), b"{}")
    assert check(signatures=b"v1,A " * SIGNATURES_MAX + good) == SignatureRejected("too_many_signatures")


def test_no_key_means_no_match() -> None:
    """Without keys nothing passes."""
    assert check([]) == SignatureRejected("no_match")
    assert check(signatures=b"v2,abc") == SignatureRejected("no_known_signature")


def test_every_reason_is_explained() -> None:
    """The log has words of its own for each reason."""
    reasons: tuple[RejectionReason, ...] = get_args(RejectionReason)
    assert len({explain(reason) for reason in reasons}) == len(reasons) == 9


SIZED = st.sampled_from([32, 64, 65]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
SIGNATURE = st.tuples(st.sampled_from([b"v1", b"v1a", b"v1a", b"v2", b""]), SIZED.map(base64.b64encode) | st.binary())
TIMES = st.tuples(
    st.binary() | st.integers().map(lambda number: b"%d" % number), st.floats(allow_nan=True, allow_infinity=True)
)


@given(
    keys=st.lists((SIZED | st.binary(max_size=80)).map(key_of), min_size=1, max_size=3),
    message_id=st.binary(),
    times=st.just((str(NOW).encode(), float(NOW))) | TIMES,
    signatures=st.lists(SIGNATURE.map(b",".join), max_size=SIGNATURES_MAX + 1).map(b" ".join) | st.binary(),
    body=st.binary(),
)
@example(
    keys=[key_of(bytes(31))],
    message_id=b"",
    times=(str(NOW).encode(), NOW),
    signatures=b"v1a," + base64.b64encode(bytes(64)),
    body=b"",
)
def test_verifying_never_raises(
    keys: list[HmacKey], message_id: bytes, times: tuple[bytes, float], signatures: bytes, body: bytes
) -> None:
    """Whatever bytes come in, even as keys, the answer is a verdict, and no secret ever vouches for them."""
    public = [Ed25519Key(id="k", owner="p", public_key=key.secret) for key in keys]
    verdict = verify_signature([*keys, *public], message_id, times[0], signatures, body, times[1])
    assert isinstance(verdict, SignatureRejected) or isinstance(verdict.key, Ed25519Key)


@given(at=st.integers(min_value=0, max_value=10_000), flip=st.integers(min_value=1, max_value=255))
def test_every_byte_of_a_signed_message_counts(at: int, flip: int) -> None:
    """One byte changed, wherever in id, timestamp, signature or body, is refused."""
    message = [b"msg_1", str(NOW).encode(), sign(KEY.secret, b"msg_1", str(NOW).encode(), b'{"a":1}'), b'{"a":1}']
    at %= sum(map(len, message))
    for place, part in enumerate(message):
        if at < len(part):
            message[place] = part[:at] + bytes([part[at] ^ flip]) + part[at + 1 :]
            break
        at -= len(part)
    assert isinstance(verify_signature([KEY], *message, NOW), SignatureRejected)


def test_a_key_does_not_show_its_secret() -> None:
    """Neither in a log line nor in a traceback that shows variables."""
    shown = repr(Verified(KEY)) + str(KEY.__rich_repr__())
    assert repr(KEY) == "HmacKey(k1, genesis)"
    assert KEY.__rich_repr__() == [("id", KEY.id), ("owner", KEY.owner)]
    assert "k1" in shown
    assert "secret" not in shown
    assert repr(KEY.secret)[2:20] not in shown


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(verification).failed == 0
    assert doctest.testmod(hmac_secrets).failed == 0


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one that is offered goes through the comparison that takes as long for a wrong one as for a right one."""
    compared: list[bytes] = []
    real = verification.hmac.compare_digest

    def counted(expected: bytes, found: bytes) -> bool:
        compared.append(found)
        return real(expected, found)

    monkeypatch.setattr(verification.hmac, "compare_digest", counted)
    good = sign(KEY.secret, b"msg_1", str(NOW).encode(), b"{}")
    assert isinstance(check(signatures=b"v1,AAAA v1,BBBB " + good), Verified)
    assert compared == [b"AAAA", b"BBBB", good.removeprefix(b"v1,")]


@pytest.mark.parametrize(
    "text", ["AAE=", "AAE", "", "AAAA", "_", "AA E=", "AAE=\n", "A", "AAE==", "AA-_", "AAF", "AB=="]
)
def test_base64_is_read_in_one_way(text: str) -> None:
    """Any other text is refused with its own reason, in words that do not repeat it."""
    broken, spare = "is not base64, or a part of it is missing", "is not base64: its last character says more than"
    reasons = {
        "_": broken, "AA E=": broken, "AAE=\n": broken, "A": broken, "AAE==": broken, "AA-_": broken, "AAF": spare,
        "AB==": spare,
    }  # fmt: skip
    if text not in reasons:
        assert decode_base64("it", text) == {"AAE=": b"\0\1", "AAE": b"\0\1", "": b"", "AAAA": bytes(3)}[text]
        return
    with pytest.raises(ValueError, match=f"^it {reasons[text]}"):
        decode_base64("it", text)


@pytest.mark.parametrize(
    ("timestamp", "signatures", "reason"),
    [
        (b"%d" % NOW, b"v1,AAAA", None),
        (b"%d" % (NOW - TOLERANCE_SECONDS - 1), b"v1,AAAA", "too_old"),
        (b"x", b"v9,AAAA", "malformed_timestamp"),
        (b"%d" % NOW, b"v9,AAAA", "no_known_signature"),
        (b"%d" % NOW, b" ".join([b"v1,AAAA"] * (SIGNATURES_MAX + 1)), "too_many_signatures"),
    ],
)
def test_some_messages_are_refused_whatever_their_body_is(
    timestamp: bytes, signatures: bytes, reason: RejectionReason | None
) -> None:
    """For their timestamp first, then for what is offered."""
    expected = None if reason is None else SignatureRejected(reason)
    assert refuse_unread(timestamp, signatures, NOW) == expected
