"""The request headers: which are read, and which are refused."""

from __future__ import annotations

import pytest

from ingress.headers import read_request_headers
from ingress.problems import Problem

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
    "kind", [b"application/json", b"Application/JSON; charset=UTF-8", b'application/json;charset="utf-8"']
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
        (without(b"webhook-id", (b"webhook-id", b"")), 400),
        (without(b"webhook-id", (b"webhook-id", b"x" * 257)), 400),
        (without(b"webhook-timestamp", (b"webhook-timestamp", b"1.5")), 400),
        ([*GOOD, (b"content-length", b"0x10")], 400),
        (without(b"content-type"), 415),
        (without(b"content-type", (b"content-type", b"text/plain")), 415),
        (without(b"content-type", (b"content-type", b"application/json; charset=latin-1")), 415),
        (without(b"content-type", (b"content-type", b"application/cloudevents+json")), 415),
        ([*GOOD, (b"content-encoding", b"gzip")], 415),
    ],
)
def test_bad_headers_are_refused(headers: list[tuple[bytes, bytes]], status: int) -> None:
    """Missing, doubled and malformed headers are 400; other content types and encodings 415."""
    with pytest.raises(Problem) as raised:
        read_request_headers(headers, cloud_event=False)
    assert raised.value.status == status
