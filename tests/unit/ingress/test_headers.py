"""The request headers: which are read, and which are refused."""

from __future__ import annotations

import doctest
import gzip

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress import headers as headers_module
from ingress.headers import read_request_headers, require_one_reading
from server.problems import Problem
from signing.signatures import signed_content

GOOD = [
    (b"host", b"x"),
    (b"content-type", b"application/json"),
    (b"webhook-id", b"msg_1"),
    (b"webhook-timestamp", b"1763884800"),
    (b"webhook-signature", b"v1,abc"),
]


def without(name: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [header for header in GOOD if header[0] != name] + list(more)


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json",
        b"Application/JSON; charset=UTF-8",
        b'application/json;charset="utf-8"',
        b"application/json; charset=utf-8;",
        b"application/json;",
        b"application/json ; charset = utf8",
        b"application/json; charset=utf-8; v=1",
        b'application/json; profile="a;b\\"c"',
    ],
)
def test_good_headers_are_read(kind: bytes) -> None:
    """JSON in UTF-8 is accepted however it is spelled."""
    headers = read_request_headers(without(b"content-type", (b"content-type", kind)), cloud_event=False)
    assert (headers.message_id, headers.signatures, headers.content_length) == (b"msg_1", b"v1,abc", None)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*GOOD, (b"webhook-id", b"msg_2")], 400),
        ([*GOOD, (b"webhook-signature", b"v1,abc")], 400),
        (without(b"webhook-id"), 400),
        (without(b"webhook-timestamp"), 400),
        (without(b"webhook-signature"), 400),
        (without(b"webhook-id", (b"webhook-id", b"a b")), 400),
        (without(b"webhook-id", (b"webhook-id", b"a{")), 400),
        (without(b"webhook-id", (b"webhook-id", b"[a]")), 400),
        (without(b"webhook-id", (b"webhook-id", b"")), 400),
        (without(b"webhook-id", (b"webhook-id", b"x" * 257)), 400),
        (without(b"webhook-timestamp", (b"webhook-timestamp", b"1.5")), 400),
        ([*GOOD, (b"content-length", b"0x10")], 400),
        (without(b"content-type"), 415),
        (without(b"content-type", (b"content-type", b"text/plain")), 415),
        (without(b"content-type", (b"content-type", b"application/json; charset=latin-1")), 415),
        (without(b"content-type", (b"content-type", b"application/cloudevents+json")), 415),
        (without(b"content-type", (b"content-type", b"application/json; charset=utf-8; charset=latin-1")), 415),
        (without(b"content-type", (b"content-type", b"application/json; v")), 415),
        (without(b"content-type", (b"content-type", b'application/json; v="')), 415),
        ([*GOOD, (b"content-encoding", b"gzip")], 415),
    ],
)
def test_bad_headers_are_refused(headers: list[tuple[bytes, bytes]], status: int) -> None:
    """Missing, doubled and malformed headers are 400; other content types and encodings 415."""
    with pytest.raises(Problem) as raised:
        read_request_headers(headers, cloud_event=False)
    assert raised.value.status == status


LINES = without(b"content-type", (b"content-type", b"application/x-ndjson"), (b"plant-producer", b"genesis"))


@pytest.mark.parametrize(
    ("encodings", "gzipped"),
    [((), False), ((b"identity",), False), ((b"gzip",), True), ((b"GZip ",), True), ((b"x-gzip",), True)],
)
def test_a_bulk_load_may_be_compressed(encodings: tuple[bytes, ...], gzipped: bool) -> None:
    """By gzip alone, under both of its names."""
    headers = [*LINES, *((b"content-encoding", encoding) for encoding in encodings)]
    assert read_request_headers(headers, cloud_event=True).gzipped is gzipped


@pytest.mark.parametrize("encoding", [b"br", b"deflate", b"zstd", b"gzip, gzip", b"identity, gzip", b"", b"*"])
def test_other_encodings_of_a_bulk_load_are_refused(encoding: bytes) -> None:
    """415 says which one is taken (RFC 9110, section 15.5.16)."""
    with pytest.raises(Problem) as raised:
        read_request_headers([*LINES, (b"content-encoding", encoding)], cloud_event=True)
    assert (raised.value.status, dict(raised.value.headers)[b"accept-encoding"]) == (415, b"gzip")


@pytest.mark.parametrize(
    "content_type", [b"application/cloudevents+json", b"application/cloudevents-batch+json", b"application/json"]
)
def test_other_bodies_are_never_compressed(content_type: bytes) -> None:
    """A single event and a batch are bounded in memory as they come."""
    headers = without(b"content-type", (b"content-type", content_type), (b"content-encoding", b"gzip"))
    headers += [(b"ce-specversion", b"1.0")]
    with pytest.raises(Problem) as raised:
        read_request_headers(headers, cloud_event=True)
    assert (raised.value.status, dict(raised.value.headers)[b"accept-encoding"]) == (415, b"identity")


def test_a_body_says_its_encoding_itself() -> None:
    """The header is not signed: who drops or adds it on the way makes no other message."""
    packed = gzip.compress(b"{}")
    require_one_reading(packed, gzipped=True)
    for body, gzipped in ((packed, False), (b"{}", True), (b"", True), (b"\x1f\x8b", True)):
        with pytest.raises(Problem) as raised:
            require_one_reading(body, gzipped=gzipped)
        assert raised.value.kind == "malformed-body"


def is_accepted(message_id: bytes, timestamp: bytes, body: bytes) -> bool:
    """Return whether the intake takes these three as a message, if their signature is good."""
    headers = [
        (b"content-type", b"application/json"),
        (b"webhook-id", message_id),
        (b"webhook-timestamp", timestamp),
        (b"webhook-signature", b"v1,abc"),
    ]
    try:
        read_request_headers(headers, cloud_event=False)
        require_one_reading(body)
    except Problem:
        return False
    return True


def readings(content: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return every way to part the bytes that a signature covers into a message that is accepted."""
    dots = [at for at, byte in enumerate(content) if byte == ord(".")]
    parted = [
        (content[:first], content[first + 1 : second], content[second + 1 :])
        for index, first in enumerate(dots)
        for second in dots[index + 1 :]
    ]
    return [message for message in parted if is_accepted(*message)]


@given(
    message_id=st.text("a1.-_}]", min_size=1, max_size=12).map(str.encode),
    timestamp=st.text("0123456789", min_size=1, max_size=10).map(str.encode),
    body=st.text('{[ \t\r\n.019a"}]', max_size=12).map(str.encode),
)
@example(message_id=b"a", timestamp=b"1614261330", body=b'1614265330.{"x": 1}')
@example(message_id=b"a.1614261330", timestamp=b"1614265330", body=b"{}")
@example(message_id=b"a", timestamp=b"1", body=b"")
def test_signed_bytes_are_one_message(message_id: bytes, timestamp: bytes, body: bytes) -> None:
    """Id, timestamp and body are joined by dots, and only one way to part them again is accepted."""
    found = readings(signed_content(message_id, timestamp, body))
    assert len(found) <= 1
    if is_accepted(message_id, timestamp, body):
        assert found == [(message_id, timestamp, body)]


@pytest.mark.parametrize("body", [b"1614265330.{}", b'"x"', b"17", b"null", b"\xef\xbb\xbf{}", b"\x0b{}", b".{}"])
def test_a_body_begins_as_json_of_events_does(body: bytes) -> None:
    """Any other beginning is 400, however good the signature is."""
    with pytest.raises(Problem) as raised:
        require_one_reading(body)
    assert raised.value.kind == "malformed-body"


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b" {}", b"\t{}", b"\r\n{}"])
def test_white_space_may_come_first(body: bytes) -> None:
    """JSON allows it; an empty body has one reading too, and is refused later or holds no line."""
    require_one_reading(body)


BINARY = [
    *without(b"webhook-id", (b"webhook-id", b"50%")),
    (b"ce-specversion", b"1.0"),
    (b"ce-source", b"urn:a%20b"),
    (b"ce-type", b"genesis.agent.rated"),
    (b"ce-time", b"2026-11-23T08:00:00Z"),
]


@pytest.mark.parametrize("identity", [b"50%25", b'"50%25"', b"%35%30%25"])
def test_attributes_in_headers_are_decoded_once(identity: bytes) -> None:
    """Quoted and percent-encoded as the HTTP binding has it; what was signed is the decoded id."""
    traced = [(b"ce-id", identity), (b"ce-traceparent", b"00-zz")]
    headers = read_request_headers([*BINARY, *traced], cloud_event=True)
    assert headers.mode == "binary"
    assert headers.attributes is not None
    assert (headers.attributes["id"], headers.attributes["source"]) == ("50%", "urn:a b")
    assert headers.attributes["traceparent"] == "00-zz"


@pytest.mark.parametrize("identity", [b"50%", b"50%2525", b"51%25"])
def test_an_id_that_decodes_to_another_is_refused(identity: bytes) -> None:
    """Only one event can be sent under a signature; `50%` alone decodes to itself."""
    if identity == b"50%":
        read_request_headers([*BINARY, (b"ce-id", identity)], cloud_event=True)
        return
    with pytest.raises(Problem) as raised:
        read_request_headers([*BINARY, (b"ce-id", identity)], cloud_event=True)
    assert raised.value.kind == "malformed-headers"


@pytest.mark.parametrize("kind", [b"text/json", b"application/vnd.example+json; v=1"])
def test_every_json_type_may_carry_a_binary_event(kind: bytes) -> None:
    """The content type is that of the data; without `ce-` headers it is none of ours."""
    headers = [header for header in BINARY if header[0] != b"content-type"] + [(b"content-type", kind)]
    assert read_request_headers([*headers, (b"ce-id", b"50%")], cloud_event=True).mode == "binary"
    with pytest.raises(Problem) as raised:
        read_request_headers(without(b"content-type", (b"content-type", kind)), cloud_event=True)
    assert raised.value.kind == "media-type"


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(headers_module).failed == 0
