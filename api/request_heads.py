"""The head of a reader's request: what of it counts, each once. A request has no body."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.types import Scope

from server.problems import CLOSE, Problem


class RequestHead(msgspec.Struct, frozen=True):
    """The headers that a read obeys, and the query."""

    query: bytes
    authorization: bytes | None
    if_none_match: bytes | None
    prefer: tuple[bytes, ...]


def read_head(scope: Scope) -> RequestHead:
    """Return the head. Raises Problem: method (405), body-too-large (413), malformed-request (400)."""
    request: Any = scope
    if request["method"] not in ("GET", "HEAD"):
        raise Problem("method", headers=((b"allow", b"GET, HEAD"), CLOSE))
    authorization = if_none_match = None
    prefer = []
    for name, value in request["headers"]:
        if name == b"authorization":
            if authorization is not None:
                raise Problem("malformed-request", "A request has one Authorization.", headers=(CLOSE,))
            authorization = value
        elif name == b"if-none-match":
            if_none_match = value if if_none_match is None else if_none_match + b"," + value
        elif name == b"prefer":
            prefer.append(value)
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            raise Problem("body-too-large", "A request that reads has no body.", headers=(CLOSE,))
    return RequestHead(request.get("query_string", b""), authorization, if_none_match, tuple(prefer))
