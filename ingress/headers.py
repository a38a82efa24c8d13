"""The request headers that matter, read once and strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from ingress.problems import CLOSE, Problem

MESSAGE_ID: Final = re.compile(rb"[!-~]{1,256}")
LENGTH: Final = re.compile(rb"[0-9]{1,15}")

_WANTED: Final = frozenset(
    (
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"webhook-id",
        b"webhook-timestamp",
        b"webhook-signature",
        b"traceparent",
    )
)
_JSON_TYPE: Final = b"application/json"
_CLOUD_EVENT_TYPE: Final = b"application/cloudevents+json"


class RequestHeaders(msgspec.Struct, frozen=True):
    """What a webhook request says of itself, unverified."""

    message_id: bytes
    timestamp: bytes
    signatures: bytes
    content_length: bytes | None
    traceparent: str | None


def read_headers(headers: Iterable[tuple[bytes, bytes]], *, cloud_event: bool) -> RequestHeaders:
    """Raises Problem: malformed-headers (400) or media-type (415). None of these headers may come twice."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _WANTED:
            if name in found:
                raise _malformed(f"{name.decode('ascii')} comes more than once")
            found[name] = value
    _check_media_type(found, _CLOUD_EVENT_TYPE if cloud_event else _JSON_TYPE)
    try:
        message_id, timestamp = found[b"webhook-id"], found[b"webhook-timestamp"]
        signatures = found[b"webhook-signature"]
    except KeyError as missing:
        raise _malformed(f"{missing.args[0].decode('ascii')} is missing") from None
    if not MESSAGE_ID.fullmatch(message_id):
        raise _malformed("webhook-id must be 1 to 256 visible ASCII characters")
    if not timestamp.isdigit():
        raise _malformed("webhook-timestamp must be a whole number of seconds since 1970")
    content_length = found.get(b"content-length")
    if content_length is not None and not LENGTH.fullmatch(content_length):
        raise _malformed("content-length is not a length")
    traceparent = found.get(b"traceparent")
    return RequestHeaders(
        message_id,
        timestamp,
        signatures,
        content_length,
        None if traceparent is None else traceparent.decode("latin-1"),
    )


def _check_media_type(found: dict[bytes, bytes], wanted: bytes) -> None:
    content_type = found.get(b"content-type", b"")
    if content_type != wanted:
        kind, _, parameters = content_type.partition(b";")
        charset = parameters.strip().lower().replace(b'"', b"")
        if kind.strip().lower() != wanted or charset not in (b"", b"charset=utf-8"):
            raise Problem("media-type", f"Send {wanted.decode('ascii')}, in UTF-8.", headers=(CLOSE,))
    if found.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem("media-type", "Send the body without a content encoding.", headers=(CLOSE,))


def _malformed(what: str) -> Problem:
    return Problem("malformed-headers", what, headers=(CLOSE,))
