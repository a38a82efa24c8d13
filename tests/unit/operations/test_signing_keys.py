"""A producer's own key: where it may come from, and what is never repeated of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from operations.signing_keys import SigningKeyUnusable, load_key_text, read_signing_key, scheme_of, verifying
from signing.ed25519 import encode_private_key, encode_public_key, new_private_key
from signing.hmac_secrets import encode_secret, new_secret
from signing.signatures import Verified, verify_signature

SECRET = encode_secret(new_secret())
PRIVATE = encode_private_key(new_private_key())


@pytest.mark.parametrize(("text", "scheme"), [(SECRET, "v1"), (PRIVATE, "v1a")], ids=["v1", "v1a"])
def test_both_kinds_of_key_sign(text: str, scheme: str) -> None:
    """What one signs is verified as ingress verifies it, and its repr shows nothing."""
    key = read_signing_key(text)
    signature = key.sign(b"msg_1", b"1795680000", b"{}")
    assert scheme_of(key) == scheme
    assert isinstance(
        verify_signature([verifying(key)], b"msg_1", b"1795680000", signature, b"{}", 1795680000), Verified
    )
    assert text not in repr(key)
    assert text.partition("_")[2][:12] not in repr(key)


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    """White space around it does not matter; a file that is named comes first."""
    file = tmp_path / "key"
    file.write_text(f" {SECRET}\n", "ascii")
    assert load_key_text(str(file), {"PLANT_WEBHOOK_SECRET": PRIVATE}) == SECRET
    assert load_key_text(None, {"PLANT_WEBHOOK_SECRET": f"{PRIVATE}\n"}) == PRIVATE
    with pytest.raises(SigningKeyUnusable, match="not set"):
        load_key_text(None, {"PLANT_WEBHOOK_SECRET": " "})


@pytest.mark.parametrize("content", [b"\xff\xfe", b"whsec_" + b"A" * 10_000])
def test_another_file_is_no_key(content: bytes, tmp_path: Path) -> None:
    """A file of other bytes, or of too many, is named and not repeated."""
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(SigningKeyUnusable, match="holds no key"):
        load_key_text(str(file), {})


@pytest.mark.parametrize("text", [SECRET, PRIVATE], ids=["v1", "v1a"])
def test_a_key_is_no_name_of_a_file(text: str) -> None:
    """A key on the command line is refused without repeating it."""
    with pytest.raises(SigningKeyUnusable) as refused:
        load_key_text(text, {})
    assert text not in str(refused.value) + refused.value.next_step


@pytest.mark.parametrize(
    "text",
    ["", "secret", "whsec_", "whsec_AAAA", SECRET[:-3] + "!", "whsk_AAAA", encode_public_key(bytes(32))],
    ids=["empty", "no prefix", "prefix alone", "short v1", "odd character", "short v1a", "public"],
)
def test_other_texts_are_no_keys(text: str) -> None:
    """They are refused with exit code 2, and never repeated."""
    with pytest.raises(SigningKeyUnusable) as refused:
        read_signing_key(text)
    assert refused.value.exit_code == 2
    assert len(text) < 8 or text not in str(refused.value)
