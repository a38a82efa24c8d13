"""Standard Webhooks signatures of version v1a: vectors, forms of keys, the two schemes side by side, the bound."""

from __future__ import annotations

import base64
import doctest
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signing import ed25519
from signing import signatures as verification
from signing.ed25519 import (
    PrivateKey,
    decode_private_key,
    decode_public_key,
    encode_private_key,
    encode_public_key,
    new_private_key,
)
from signing.hmac_secrets import decode_secret
from signing.signatures import (
    ED25519_CHECKS_MAX,
    SIGNATURES_MAX,
    Ed25519Key,
    HmacKey,
    Key,
    SignatureRejected,
    Verified,
    sign,
    verify_signature,
)

FOLDER = Path(verification.__file__).parent / "vectors"
VECTORS = json.loads((FOLDER / "standard_webhooks_v1a.json").read_text("utf-8"))["cases"]
FORMS = json.loads((FOLDER / "key_forms.json").read_text("utf-8"))["cases"]
DECODE: dict[str, Callable[[str], bytes]] = {
    "secret": decode_secret,
    "private": lambda text: decode_private_key(text).seed,
    "public": decode_public_key,
}
NOW = 1_763_884_800
TIMESTAMP = str(NOW).encode()
PAIR = PrivateKey(bytes(range(32)))
SECRET = HmacKey(id="hmac", owner="genesis", secret=bytes(range(32)))


def public(pair: PrivateKey, key_id: str = "k") -> Ed25519Key:
    return Ed25519Key(id=key_id, owner="genesis", public_key=pair.public_key)


def check(keys: list[Key], *signatures: bytes, body: bytes = b"{}") -> Verified | SignatureRejected:
    return verify_signature(keys, b"msg_1", TIMESTAMP, b" ".join(signatures), body, NOW)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_vectors_are_judged_as_they_say(vector: dict[str, str]) -> None:
    """Each vector is accepted or refused as it says; a valid one of a single signature is what we make, too."""
    key = Ed25519Key(id="k", owner="p", public_key=decode_public_key(vector["public_key"]))
    message = [vector[part].encode() for part in ("id", "timestamp", "body")]
    verdict = verify_signature([key], *message[:2], vector["signature"].encode(), message[2], int(vector["timestamp"]))
    assert isinstance(verdict, Verified) == vector["valid"]
    if vector["valid"]:
        made = decode_private_key(vector["private_key"]).sign(*message).decode()
        assert made.rstrip("=") in vector["signature"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form['kind']}, {form['name']}")
def test_the_forms_of_keys_are_read_as_they_say(form: dict[str, str | None]) -> None:
    """Each text gives its bytes, or a ValueError that says what is wrong and repeats nothing of it."""
    kind, text, held = str(form["kind"]), str(form["text"]), form["hex"]
    if held is not None:
        assert DECODE[kind](text).hex() == held
        return
    with pytest.raises(ValueError, match=rf"^a {kind} |^a {kind} key ") as raised:
        DECODE[kind](text)
    after = text.partition("_")[2]
    assert len(after) < 8 or after[:8] not in str(raised.value)
    assert raised.value.__cause__ is None


@given(st.binary(min_size=32, max_size=32))
def test_keys_come_back_from_their_forms(seed: bytes) -> None:
    """A pair and its public half are what they were, with padding and without."""
    pair = PrivateKey(seed)
    for written in (encode_private_key(pair), encode_public_key(pair.public_key)):
        for text in (written, written.rstrip("=")):
            read = decode_private_key(text).public_key if text.startswith("whsk_") else decode_public_key(text)
            assert read == pair.public_key


@given(st.text() | st.from_regex(r"(whsec_|whsk_|whpk_)[A-Za-z0-9+/]{0,90}={0,3}", fullmatch=True))
def test_reading_a_form_raises_nothing_but_value_error(text: str) -> None:
    """Any text is either decoded as a key or refused with a reason."""
    for decode in DECODE.values():
        try:
            assert isinstance(decode(text), bytes)
        except ValueError:
            continue


@given(at=st.integers(min_value=0, max_value=10_000), flip=st.integers(min_value=1, max_value=255))
def test_every_byte_of_a_signed_message_counts(at: int, flip: int) -> None:
    """One byte changed, wherever in id, timestamp, signature or body, is refused."""
    message = [b"msg_1", TIMESTAMP, PAIR.sign(b"msg_1", TIMESTAMP, b'{"a":1}'), b'{"a":1}']
    at %= sum(map(len, message))
    for place, part in enumerate(message):
        if at < len(part):
            message[place] = part[:at] + bytes([part[at] ^ flip]) + part[at + 1 :]
            break
        at -= len(part)
    assert isinstance(verify_signature([public(PAIR)], *message, NOW), SignatureRejected)


def test_a_key_of_one_scheme_never_verifies_the_other() -> None:
    """The same 32 bytes as secret and as public key: each signature is its own scheme's alone."""
    shared = PAIR.public_key
    secret, key = HmacKey(id="s", owner="p", secret=shared), public(PAIR)
    hmac, signature = sign(shared, b"msg_1", TIMESTAMP, b"{}"), PAIR.sign(b"msg_1", TIMESTAMP, b"{}")
    assert check([key], hmac) == check([secret], signature) == SignatureRejected("no_match")
    assert check([key], b"v1a," + hmac[3:]) == check([secret], b"v1," + signature[4:]) == SignatureRejected("no_match")
    assert check([key, secret], hmac) == Verified(secret)
    assert check([secret, key], signature) == Verified(key)


def test_either_scheme_passes_where_a_producer_changes_from_one_to_the_other() -> None:
    """With both signatures in the header it is enough to have one of the keys."""
    both = sign(SECRET.secret, b"msg_1", TIMESTAMP, b"{}"), PAIR.sign(b"msg_1", TIMESTAMP, b"{}")
    assert check([SECRET], *both) == Verified(SECRET)
    assert check([public(PAIR)], *both) == Verified(public(PAIR))


def test_keys_count_only_in_their_time() -> None:
    """A key is refused before it begins and from the moment it expires."""
    signature = PAIR.sign(b"msg_1", TIMESTAMP, b"{}")
    for not_before, expires_at, good in ((NOW, NOW + 1, True), (NOW + 1, None, False), (0, NOW, False)):
        key = Ed25519Key(id="k", owner="p", public_key=PAIR.public_key, not_before=not_before, expires_at=expires_at)
        assert isinstance(check([key], signature), Verified) == good


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The ed25519 verifications that are made from now on."""
    made: list[bytes] = []
    real = verification.Ed25519PublicKey

    class Counting:
        @staticmethod
        def from_public_bytes(held: bytes) -> object:
            made.append(held)
            return real.from_public_bytes(held)

    monkeypatch.setattr(verification, "Ed25519PublicKey", Counting)
    return made


def test_a_request_costs_a_bounded_number_of_verifications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many keys times many signatures end at the bound; what stands beyond it is not found."""
    keys: list[Key] = [public(new_private_key(), str(number)) for number in range(20)]
    wrong = [PrivateKey(bytes([number]) * 32).sign(b"msg_1", TIMESTAMP, b"{}") for number in range(SIGNATURES_MAX - 1)]
    made = counted(monkeypatch)
    right = PAIR.sign(b"msg_1", TIMESTAMP, b"{}")
    assert check([*keys, public(PAIR)], *wrong, right) == SignatureRejected("too_many_checks")
    assert len(made) == ED25519_CHECKS_MAX
    assert check([public(PAIR), *keys], *wrong, right) == Verified(public(PAIR))


def test_at_the_bound_everything_is_still_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pairs as the bound: the last one is found, and without it the answer is that nothing matched."""
    keys: list[Key] = [public(new_private_key(), str(number)) for number in range(ED25519_CHECKS_MAX - 1)]
    made = counted(monkeypatch)
    right = PAIR.sign(b"msg_1", TIMESTAMP, b"{}")
    assert check([*keys, public(PAIR)], right) == Verified(public(PAIR))
    assert check([*keys, public(new_private_key())], right) == SignatureRejected("no_match")
    assert len(made) == 2 * ED25519_CHECKS_MAX


def test_what_can_not_be_a_signature_costs_no_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong lengths and wrong base64 are found out first."""
    made = counted(monkeypatch)
    bad = [b"", b"=" * 88, b"A" * 85, b"A" * 87, base64.b64encode(bytes(63)), base64.b64encode(bytes(65)), b"!" * 88]
    assert check([public(PAIR)], *(b"v1a," + text for text in bad)) == SignatureRejected("no_match")
    assert made == []


def test_both_versions_together_are_counted_against_the_flood() -> None:
    """More signatures than anyone needs are refused unread, though one is right."""
    right = PAIR.sign(b"msg_1", TIMESTAMP, b"{}")
    several = [b"v1,A"] * (SIGNATURES_MAX // 2) + [b"v1a,A"] * (SIGNATURES_MAX // 2 - 1)
    assert check([public(PAIR)], *several, *[b"v3,A"] * 40, right) == Verified(public(PAIR))
    assert check([public(PAIR)], *several, b"v1,A", right) == SignatureRejected("too_many_signatures")


def test_a_pair_does_not_show_its_private_half() -> None:
    """Neither in a log line nor in a traceback that shows variables."""
    pair = PrivateKey(b"a private half of thirty-two by.")
    assert encode_public_key(pair.public_key) in repr(pair)
    assert "private half" not in repr(pair) + str(pair.__rich_repr__())


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(ed25519).failed == 0
