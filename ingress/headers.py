"""The request headers that matter, read once and strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from ingress.problems import CLOSE, Problem

MESSAGE_ID: Final = re.compile(rb"[!-Z\\-z|}~]{1,256}")
"""Visible ASCII without `{` and `[`, so that an id can't reach into the body: see `require_one_reading`."""
LENGTH: Final = re.compile(rb"[0-9]{1,15}")

Mode = Literal["webhook", "structured", "binary", "batch", "lines"]
"""How a request carries events: a Standard Webhooks payload, or CloudEvents one by one, many, or a line each."""

_WANTED: Final = frozenset(
    (
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"webhook-id",
        b"webhook-timestamp",
        b"webhook-signature",
        b"traceparent",
        b"plant-producer",
    )
)
_ATTRIBUTES: Final = {
    b"ce-specversion": "specversion",
    b"ce-id": "id",
    b"ce-source": "source",
    b"ce-type": "type",
    b"ce-time": "time",
}
_WANTED_OF_CLOUD_EVENTS: Final = _WANTED | frozenset(_ATTRIBUTES)
_BODY_STARTS: Final = frozenset(b"{[ \t\r\n")
_JSON_TYPE: Final = b"application/json"
_CLOUD_EVENT_MODES: Final[dict[bytes, Mode]] = {
    b"application/cloudevents+json": "structured",
    b"application/cloudevents-batch+json": "batch",
    b"application/x-ndjson": "lines",
    _JSON_TYPE: "binary",
}
_SEND_ONE_OF: Final = (
    "Send application/cloudevents+json, application/cloudevents-batch+json or application/x-ndjson, in UTF-8; or"
    " application/json with the headers ce-specversion, ce-id, ce-source, ce-type and ce-time."
)


class RequestHeaders(msgspec.Struct, frozen=True):
    """The headers of a webhook request, unverified."""

    mode: Mode
    message_id: bytes
    timestamp: bytes
    signatures: bytes
    content_length: bytes | None
    traceparent: str | None
    producer: str | None
    """Whose keys to try; None: everybody's."""
    attributes: dict[str, str] | None = None
    """Of a binary CloudEvent, by name."""


def read_request_headers(headers: Iterable[tuple[bytes, bytes]], *, cloud_event: bool) -> RequestHeaders:
    """Read the headers of a webhook request. None of them may come twice.

    Raises Problem: malformed-headers (400) or media-type (415).
    """
    values: dict[bytes, bytes] = {}
    wanted = _WANTED_OF_CLOUD_EVENTS if cloud_event else _WANTED
    for name, value in headers:
        if name in wanted:
            if name in values:
                raise _malformed(f"{name.decode('ascii')} comes more than once")
            values[name] = value
    mode = _cloud_event_mode(values) if cloud_event else _webhook_mode(values)
    try:
        message_id, timestamp = values[b"webhook-id"], values[b"webhook-timestamp"]
        signatures = values[b"webhook-signature"]
    except KeyError as missing:
        raise _malformed(f"{missing.args[0].decode('ascii')} is missing") from None
    if not MESSAGE_ID.fullmatch(message_id):
        raise _malformed("webhook-id must be 1 to 256 visible ASCII characters without { and [")
    if not timestamp.isdigit():
        raise _malformed("webhook-timestamp must be a whole number of seconds since 1970")
    content_length = values.get(b"content-length")
    if content_length is not None and not LENGTH.fullmatch(content_length):
        raise _malformed("content-length is not a length")
    return RequestHeaders(
        mode,
        message_id,
        timestamp,
        signatures,
        content_length,
        _text(values.get(b"traceparent")),
        _text(values.get(b"plant-producer")),
        _attributes(values, message_id) if mode == "binary" else None,
    )


def require_one_reading(body: bytes) -> None:
    """Raise Problem (400) for a body that could be read as the end of another id and timestamp.

    A signature covers `id.timestamp.body`. A body begins with `{`, `[` or white space, and a `webhook-id` holds none of
    these. So the first of them, if there is one, begins the body; the timestamp before it has digits alone, and signed
    bytes are one message.
    """
    if body and body[0] not in _BODY_STARTS:
        raise Problem("malformed-body", "The body must begin with {, [ or white space.")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _attributes(values: dict[bytes, bytes], message_id: bytes) -> dict[str, str]:
    """Return the attributes of a binary CloudEvent, percent-decoded as its HTTP binding says.

    The signature covers `webhook-id` and not these headers, so the event's id must be equal to it. Else whoever has
    seen one request could send its body again as another event.
    """
    attributes = {}
    for header, name in _ATTRIBUTES.items():
        if header not in values:
            raise _malformed(f"{header.decode('ascii')} is missing")
        attributes[name] = unquote(values[header].decode("latin-1"), errors="replace")
    if values[b"ce-id"] != message_id:
        raise _malformed("ce-id must be equal to webhook-id, which is what was signed")
    return attributes


def _webhook_mode(values: dict[bytes, bytes]) -> Mode:
    content_type = values.get(b"content-type", b"")
    if content_type != _JSON_TYPE and _kind_in_utf8(content_type) != _JSON_TYPE:
        raise Problem("media-type", "Send application/json, in UTF-8.", headers=(CLOSE,))
    _refuse_encodings(values)
    return "webhook"


def _cloud_event_mode(values: dict[bytes, bytes]) -> Mode:
    mode = _CLOUD_EVENT_MODES.get(_kind_in_utf8(values.get(b"content-type", b"")))
    if mode is None or (mode == "binary" and b"ce-specversion" not in values):
        raise Problem("media-type", _SEND_ONE_OF, headers=(CLOSE,))
    _refuse_encodings(values)
    return mode


def _kind_in_utf8(content_type: bytes) -> bytes:
    """Return the media type in lower case; nothing where it has another charset or another parameter."""
    kind, _, parameters = content_type.partition(b";")
    charset = parameters.strip().lower().replace(b'"', b"")
    return kind.strip().lower() if charset in (b"", b"charset=utf-8") else b""


def _refuse_encodings(values: dict[bytes, bytes]) -> None:
    if values.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem("media-type", "Send the body without a content encoding.", headers=(CLOSE,))


def _malformed(what: str) -> Problem:
    return Problem("malformed-headers", what, headers=(CLOSE,))
