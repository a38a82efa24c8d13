"""The head of a request: what of it counts, each once. A request that reads has no body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from litestar.types import Scope

from server.problems import CLOSE, Problem

READING: Final = ("GET", "HEAD")


class RequestHead(msgspec.Struct, frozen=True):
    """The headers that a request obeys, and the query."""

    method: str
    query: bytes
    authorization: bytes | None
    if_none_match: bytes | None
    prefer: tuple[bytes, ...]
    content_type: bytes | None
    idempotency_key: bytes | None
    has_body: bool


def read_head(scope: Scope, methods: Sequence[str] = READING) -> RequestHead:
    """Return the head. Raises Problem: method (405), body-too-large (413), malformed-request (400)."""
    request: Any = scope
    require_method(request["method"], methods)
    once: dict[bytes, bytes] = {}
    if_none_match, has_body = None, False
    prefer = []
    for name, value in request["headers"]:
        if name in (b"authorization", b"content-type", b"idempotency-key"):
            if name in once:
                raise Problem("malformed-request", f"A request has one {name.decode().title()}.", headers=(CLOSE,))
            once[name] = value
        elif name == b"if-none-match":
            if_none_match = value if if_none_match is None else if_none_match + b"," + value
        elif name == b"prefer":
            prefer.append(value)
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            has_body = True
    if has_body and request["method"] in READING:
        raise Problem("body-too-large", "A request that reads has no body.", headers=(CLOSE,))
    return RequestHead(
        method=request["method"],
        query=request.get("query_string", b""),
        authorization=once.get(b"authorization"),
        if_none_match=if_none_match,
        prefer=tuple(prefer),
        content_type=once.get(b"content-type"),
        idempotency_key=once.get(b"idempotency-key"),
        has_body=has_body,
    )


def require_method(method: str, methods: Sequence[str]) -> None:
    """Raise Problem (405) for a method that a resource does not know."""
    if method not in methods:
        raise Problem("method", headers=((b"allow", ", ".join(methods).encode("ascii")), CLOSE))
