"""The headers that subscribers configure."""

from __future__ import annotations

import doctest
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.errors import CustomHeadersRefused
from deliveries.guard import custom_headers
from deliveries.guard.custom_headers import HEADERS_MAX, NAME_MAX_BYTES, VALUE_MAX_BYTES, check_custom_headers


def test_headers_are_returned_in_lower_case() -> None:
    """Names are compared without case, values are kept as they are."""
    headers = [("Authorization", "Bearer a=b, \t c"), ("X-Empty", ""), ("x-!#$%&'*+.^_`|~0", "~")]
    assert check_custom_headers(headers) == tuple((name.lower(), value) for name, value in headers)


@pytest.mark.parametrize(
    "name",
    [
        "Host", "host", "HOST", "Connection", "Content-Length", "content_length", "Transfer-Encoding", "TE", "Trailer",
        "Upgrade", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Expect", "Content-Type",
        "Content-Encoding", "webhook-id", "Webhook-Signature", "webhook_timestamp", "webhook-other", "traceparent",
        "tracestate", "ce-id", "CE_Type", "plant-producer", "X-Forwarded-For", "Forwarded", "Via", "User-Agent",
        "Metadata-Flavor", "Metadata", "X-aws-ec2-metadata-token", "X-HTTP-Method-Override", "X-Original-URL",
        "Proxy", "PROXY", "X-Forwarded", "X-Forwarded-Host", "X-Original-Host", "X_Rewrite_URL", "X-Host", "X-Real-IP",
        "Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "X-Envoy-Original-Path",
        "svix-id", "Svix-Signature", "webhook.signature", "Webhook!Id", "transfer.encoding", "content~length", "x|host",
    ],
)  # fmt: skip
def test_a_reserved_name_is_refused(name: str) -> None:
    """No header of a subscriber frames, routes, signs or replaces what Plant sends."""
    with pytest.raises(CustomHeadersRefused, match="not for subscribers"):
        check_custom_headers([(name, "1")])


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", ":authority", "a\r\nb", "a\n", "a\x00", "ä", "a/b", "(a)", "a\t", "ＨOST", "a" * 65]
)
def test_a_name_is_a_token(name: str) -> None:
    """What is no token of RFC 9110, or is too long, is no header's name."""
    with pytest.raises(CustomHeadersRefused, match="RFC 9110"):
        check_custom_headers([(name, "1")])


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nHost: b",
        "a\n",
        "\na",
        "a\rb",
        "a\x00b",
        "a\x7f",
        "a\x0bb",
        "ä",
        "a\u2028b",
        " s3cret",
        "s3cret ",
        "\ts3cret",
        "a" * 4097,
    ],
)
def test_a_value_is_one_line_of_ascii(value: str) -> None:
    """CR, LF, NUL, other controls, blanks at the ends and other scripts are refused, and the value is not repeated."""
    with pytest.raises(CustomHeadersRefused, match="The value of x-a") as refused:
        check_custom_headers([("X-A", value)])
    assert value not in str(refused.value)


def test_headers_are_bounded() -> None:
    """Their number, their bytes and repeats of a name have bounds."""
    most = [(f"x-{number}", "a") for number in range(HEADERS_MAX)]
    assert len(check_custom_headers(most)) == HEADERS_MAX
    for headers, why in (
        ([*most, ("x-more", "a")], "more than 16"),
        ([("x-a", "1"), ("X-A", "1")], "more than once"),
        ([("x-a", "a" * VALUE_MAX_BYTES), ("x-b", "b" * VALUE_MAX_BYTES)], "Together"),
    ):
        with pytest.raises(CustomHeadersRefused, match=why):
            check_custom_headers(headers)
    assert check_custom_headers([("a" * NAME_MAX_BYTES, "a" * VALUE_MAX_BYTES)])


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_what_passes_is_a_line_each(headers: list[tuple[str, str]]) -> None:
    """Whatever is configured, what passes is written as one line of a token, a colon and visible ASCII."""
    try:
        checked = check_custom_headers(headers)
    except CustomHeadersRefused:
        return
    for name, value in checked:
        assert re.fullmatch(rb"[!-9;-~]+: [\t -~]*\r\n", f"{name}: {value}\r\n".encode())


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(custom_headers).failed == 0
