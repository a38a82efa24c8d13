"""The headers that subscribers configure: what they may be called and hold.

None can frame or route a request, stand for one that Plant signs or makes, or open a cloud's metadata service. Names
are compared without case and with `_` as `-`: receivers that pass headers as variables can't tell these apart.

Source: RFC 9110, 5.1, 5.5, 5.6.2 (names and values), 7.6.1 (hop by hop); RFC 9112, 6 (framing)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from deliveries.errors import CustomHeadersRefused

HEADERS_MAX: Final = 16
NAME_MAX_BYTES: Final = 64
VALUE_MAX_BYTES: Final = 4096
HEADERS_MAX_BYTES: Final = 8192

REFUSED_NAMES: Final = frozenset(
    {
        # framing, routing, hop by hop
        "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect",
        "http2-settings", "close", "max-forwards", "alt-used", "early-data",
        # the body, and the answer's form
        "content-type", "content-encoding", "content-range", "accept-encoding", "range",
        # who sends, and from where
        "user-agent", "date", "origin", "referer", "forwarded", "x-forwarded", "via", "client-ip", "true-client-ip",
        "fastly-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip", "x-remote-addr", "x-remote-ip",
        "x-originating-ip",
        # another method, host or path than the one that is sent
        "x-method-override", "x-host",
        # what CGI programs take for their own proxy
        "proxy",
        # made by Plant for each event
        "traceparent", "tracestate", "baggage",
        # metadata services of clouds
        "metadata", "metadata-flavor",
    }
)  # fmt: skip
REFUSED_PREFIXES: Final = (
    "webhook-", "svix-", "ce-", "plant-", "proxy-", "sec-", "access-control-", "cf-connecting-", "x-envoy-",
    "x-forwarded-", "x-http-", "x-original-", "x-rewrite-", "x-aws-ec2-metadata-", "x-google-metadata-",
)  # fmt: skip

_OTHER_CHARACTER: Final = re.compile(r"[^a-z0-9]")
"""Servers that hand headers on as variables write one character for all of these."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"(?:[!-~](?:[ \t!-~]*[!-~])?)?")


def check_custom_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the headers as they are sent, their names in lower case. Raises CustomHeadersRefused; no value is in it.

    >>> check_custom_headers([("Authorization", "Bearer abc")])
    (('authorization', 'Bearer abc'),)
    """
    checked: dict[str, str] = {}
    for name, value in headers:
        lowered = _checked_name(name)
        if lowered in checked:
            raise CustomHeadersRefused(why=f"{lowered} comes more than once.")
        if len(value) > VALUE_MAX_BYTES or not _VALUE.fullmatch(value):
            raise CustomHeadersRefused(
                why=f"The value of {lowered} is not up to {VALUE_MAX_BYTES} visible ASCII characters, blanks inside."
            )
        checked[lowered] = value
        if len(checked) > HEADERS_MAX:
            raise CustomHeadersRefused(why=f"There are more than {HEADERS_MAX} headers.")
    if sum(len(name) + len(value) + len(": \r\n") for name, value in checked.items()) > HEADERS_MAX_BYTES:
        raise CustomHeadersRefused(why=f"Together they have more than {HEADERS_MAX_BYTES} bytes.")
    return tuple(checked.items())


def _checked_name(name: str) -> str:
    if len(name) > NAME_MAX_BYTES or not _TOKEN.fullmatch(name):
        raise CustomHeadersRefused(why=f"A header's name is a token of up to {NAME_MAX_BYTES} characters (RFC 9110).")
    lowered = name.lower()
    compared = _OTHER_CHARACTER.sub("-", lowered)
    if compared in REFUSED_NAMES or compared.startswith(REFUSED_PREFIXES):
        raise CustomHeadersRefused(why=f"{lowered} is not for subscribers to set.")
    return lowered
