"""Which part of a signed request does not match."""

from __future__ import annotations

import base64
import gzip
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.signature_diagnosis import (
    RequestUnreadable,
    RequestUnverified,
    SavedRequest,
    diagnose,
    read_request,
    read_verifying_key,
    require_good,
)
from operations.signing_keys import read_signing_key
from signing.ed25519 import decode_private_key, encode_private_key, encode_public_key, new_private_key
from signing.hmac_secrets import decode_secret, encode_secret, new_secret

SECRET = encode_secret(new_secret())
PRIVATE = encode_private_key(new_private_key())
PUBLIC = encode_public_key(decode_private_key(PRIVATE).public_key)
NOW = 1795680000
BODY = b'{"type": "genesis.agent.rated", "data": {"rating": 4, "name": "\xc3\xa9"}}'


def request(key_text: str = SECRET, *, body: bytes = BODY, **headers: bytes | None) -> SavedRequest:
    """A request that was signed well, with other headers where they are given; None: without this header."""
    key = read_signing_key(key_text)
    signature = key.sign(b"msg_1", str(NOW).encode(), BODY)
    good = {"webhook_id": b"msg_1", "webhook_timestamp": str(NOW).encode(), "webhook_signature": signature}
    named = [(name.replace("_", "-"), value) for name, value in {**good, **headers}.items() if value is not None]
    return SavedRequest(named, body)


def faults(given_request: SavedRequest, key_text: str = SECRET, now: float | None = NOW) -> dict[str, str]:
    """The reason of each part that is bad."""
    results = diagnose(read_verifying_key(key_text), key_text, given_request, now)
    return {each.part: each.reason for each in results if each.result == "bad"}


@pytest.mark.parametrize(
    ("signer", "verifier"),
    [(SECRET, SECRET), (PRIVATE, PRIVATE), (PRIVATE, PUBLIC)],
    ids=["secret", "private", "public"],
)
def test_a_good_request_is_good(signer: str, verifier: str) -> None:
    """Every part holds, with the secret, the private key and the public one."""
    results = diagnose(read_verifying_key(verifier), verifier, request(signer), NOW)
    assert {each.result for each in results} == {"good"}
    require_good(results)


@pytest.mark.parametrize("name", ["webhook_id", "webhook_timestamp", "webhook_signature"])
def test_a_missing_header_is_named(name: str) -> None:
    """What can't be checked without it is not called good."""
    key = read_verifying_key(SECRET)
    results = diagnose(key, SECRET, request(**{name: None}), NOW)
    assert results[0].reason == f"{name.replace('_', '-')} is missing"
    assert {each.result for each in results[1:]} == {"not checked"}
    with pytest.raises(RequestUnverified) as refused:
        require_good(results)
    assert refused.value.exit_code == 3


def test_a_header_that_comes_twice_is_named() -> None:
    """Ingress refuses it."""
    twice = SavedRequest([*request().headers, ("webhook-id", b"msg_1")], BODY)
    assert faults(twice) == {"headers": "webhook-id comes more than once"}


def test_a_compressed_body_is_good_where_its_header_says_so() -> None:
    """As a bulk load has it; its signature covers the bytes as they are sent."""
    packed = gzip.compress(b"{}")
    signature = read_signing_key(SECRET).sign(b"msg_1", str(NOW).encode(), packed)
    signed = request(body=packed, webhook_signature=signature, content_encoding=b"gzip")
    assert faults(signed) == {}
    assert set(faults(request(body=packed, webhook_signature=signature))) == {"body"}


def test_an_old_timestamp_is_apart_from_the_signature() -> None:
    """The signature may match all the same; the age can be left out."""
    assert list(faults(request(), now=NOW + 301)) == ["webhook-timestamp"]
    assert list(faults(request(), now=NOW - 301)) == ["webhook-timestamp"]
    assert faults(request(), now=None) == {}
    assert set(faults(request(webhook_timestamp=b"17956e5"), now=None)) == {"webhook-timestamp", "match"}


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        (BODY + b"\n", "a line end was added"),
        (BODY + b"\r\n", "a line end was added"),
        (b"\xef\xbb\xbf" + BODY, "a byte order mark"),
        (b'{"data":{"name":"\\u00e9","rating":4},"type":"genesis.agent.rated"}', "another key was used"),
        (b'{"type":"genesis.agent.rated","data":{"rating":4,"name":"\xc3\xa9"}}', "JSON was written again"),
    ],
)
def test_a_changed_body_is_found(body: bytes, mistake: str) -> None:
    """The changes that editors and JSON libraries make are named; others can't be told from another key."""
    assert mistake in faults(request(body=body))["match"]


@pytest.mark.parametrize(
    ("secret", "mistake"),
    [(SECRET.encode(), "with whsec_"), (SECRET.removeprefix("whsec_").encode(), "its text was")],
    ids=["with its prefix", "without"],
)
def test_a_secret_used_as_text_is_found(secret: bytes, mistake: str) -> None:
    """The commonest mistake of those who sign by hand."""
    digest = hmac.digest(secret, b"msg_1.%d.%b" % (NOW, BODY), "sha256")
    found = faults(request(webhook_signature=b"v1," + base64.b64encode(digest)))
    assert mistake in found["match"]
    assert SECRET not in str(found)


def test_a_signature_in_another_form_is_found() -> None:
    """Hexadecimal, the alphabet of URLs, another scheme, none, and a part of one."""
    digest = hmac.digest(decode_secret(SECRET), b"msg_1.%d.%b" % (NOW, BODY), "sha256")
    assert "hexadecimal" in faults(request(webhook_signature=b"v1," + digest.hex().encode()))["match"]
    assert list(faults(request(webhook_signature=b"v1a,AAAA"))) == ["webhook-signature", "match"]
    assert "only v1a" in faults(request(webhook_signature=b"v1a,AAAA"))["webhook-signature"]
    assert "neither" in faults(request(webhook_signature=b""))["webhook-signature"]
    assert "has the form" in faults(request(webhook_signature=b"v1,AAAA"))["webhook-signature"]
    assert "only v1;" in faults(request(SECRET), PRIVATE)["webhook-signature"]


def test_a_signature_in_the_alphabet_of_urls_is_found() -> None:
    """Where its bytes have a character that differs."""
    for number in range(64):
        body = b'{"n": %d}' % number
        text = base64.b64encode(hmac.digest(decode_secret(SECRET), b"msg_1.%d.%b" % (NOW, body), "sha256"))
        if b"+" in text or b"/" in text:
            break
    changed = text.translate(bytes.maketrans(b"+/", b"-_"))
    assert "URLs" in faults(request(body=body, webhook_signature=b"v1," + changed))["match"]


def test_another_key_is_no_match() -> None:
    """Nothing explains it, and it is not called good."""
    assert "another key" in faults(request(), encode_secret(new_secret()))["match"]
    assert "another key" in faults(request(PRIVATE), encode_private_key(new_private_key()))["match"]


@given(st.binary(max_size=200), st.binary(max_size=40), st.binary(max_size=20), st.binary(max_size=120))
def test_nothing_but_the_signed_request_is_good(
    body: bytes, message_id: bytes, timestamp: bytes, signature: bytes
) -> None:
    """Any other content is judged, never failed at, and never good."""
    other: Any = {"webhook_id": message_id, "webhook_timestamp": timestamp, "webhook_signature": signature}
    assert faults(request(body=body, **other), now=None)


def test_a_request_is_read_as_it_was_sent() -> None:
    """With or without its first line, with either line end; the body is kept to its last byte."""
    head = b"webhook-id: msg_1\nContent-Length:  5 \n"
    expected = [("webhook-id", b"msg_1"), ("content-length", b"5")]
    assert read_request(head + b"\n{}\n\n\n", None) == SavedRequest(expected, b"{}\n\n\n")
    crlf = b"POST /webhook/genesis/events HTTP/1.1\n" + head
    assert read_request(crlf.replace(b"\n", b"\r\n") + b"\r\n{}\n\n", None) == SavedRequest(expected, b"{}\n\n")
    assert read_request(head, b"{}") == SavedRequest(expected, b"{}")
    assert "content-length is 5" in faults(SavedRequest([*request().headers, expected[1]], BODY))["body"]


@pytest.mark.parametrize(
    ("content", "body"), [(b"", None), (b"webhook-id: 1", None), (b"{}\n\n{}", None), (b"a: b\n\n{}", b"{}")]
)
def test_a_file_that_holds_no_request_is_refused(content: bytes, body: bytes | None) -> None:
    """Exit code 2: nothing was checked."""
    with pytest.raises(RequestUnreadable) as refused:
        read_request(content, body)
    assert refused.value.exit_code == 2
