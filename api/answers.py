"""Answers to readers: JSON, with an entity tag by which a reader that has it already gets none of it again."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

import msgspec
from litestar.types import Scope, Send

from api.read_queries import ReadQuery, ReadRows, as_document
from server.peers import Header, peer_of
from server.problems import Problem

ETAG_BYTES: Final = 15

_COMMON: Final[tuple[Header, ...]] = (
    # A reader's cache asks again each time; a shared one keeps nothing, since tokens read different rows.
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"authorization"),
)
_JSON: Final[Header] = (b"content-type", b"application/json")
PRIVATE_JSON: Final[tuple[Header, ...]] = (_JSON, (b"cache-control", b"no-store"))
"""Of an answer that may hold a secret."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer: its status, its headers without the length, its body."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


def read_answer(query: ReadQuery, found: ReadRows, tenant: str, if_none_match: bytes | None) -> Answer:
    """Return the answer that holds these rows. Raises Problem (404) where a single row is not there."""
    columns, rows = query.resource.columns, found.rows
    if query.single_row:
        if not rows:
            raise Problem("no-row", f"There is none in the read model {query.resource.model}, as far as it has come.")
        body = msgspec.json.encode(as_document(rows[0], columns))
    else:
        page = [as_document(row, columns) for row in rows[: query.limit]]
        body = msgspec.json.encode({"items": page, "next": query.next_cursor(found, tenant)})
    return _tagged(body, if_none_match)


def answer_document(document: object, if_none_match: bytes | None) -> Answer:
    """Return the answer that holds a document as JSON."""
    return _tagged(msgspec.json.encode(document), if_none_match)


def _tagged(body: bytes, if_none_match: bytes | None) -> Answer:
    etag = etag_of(body)
    if if_none_match is not None and matches(etag, if_none_match):
        return Answer(304, ((b"etag", etag), *_COMMON), b"")
    return Answer(200, (_JSON, (b"etag", etag), *_COMMON), body)


def etag_of(body: bytes) -> bytes:
    """Return the strong entity tag of a body: equal bytes have equal ones.

    >>> etag_of(b"{}")
    b'"RBNvo1WzZ4oRRq0W9-hk"'
    """
    return b'"%b"' % base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:ETAG_BYTES])


def matches(etag: bytes, if_none_match: bytes) -> bool:
    """Return whether an If-None-Match header names an entity tag, by weak comparison (RFC 9110, 13.1.2).

    >>> matches(b'"a"', b'"b", W/"a"'), matches(b'"a"', b"*"), matches(b'"a"', b'"b"')
    (True, True, False)
    """
    named = [each.strip().removeprefix(b"W/") for each in if_none_match.split(b",")]
    return etag in named or named == [b"*"]


async def send_answer(answer: Answer, scope: Scope, send: Send) -> None:
    """Send an answer, at once where the server can."""
    headers = (
        answer.headers
        if answer.status in (204, 304)
        else (*answer.headers, (b"content-length", b"%d" % len(answer.body)))
    )
    peer = peer_of(scope)
    if peer is not None and peer.answer(scope, answer.status, headers, answer.body):
        return
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
