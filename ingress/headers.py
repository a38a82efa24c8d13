"""The request headers that matter, read once and strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from ingress.gzip_content import GZIP_START
from server.problems import CLOSE, Problem

MESSAGE_ID: Final = re.compile(rb"[!-Z\\-z|}~]{1,256}")
"""Visible ASCII without `{` and `[`, so that an id can't reach into the body: see `require_one_reading`."""
LENGTH_MAX_DIGITS: Final = 15

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
_TRACEPARENT: Final = b"ce-traceparent"
_WANTED_OF_CLOUD_EVENTS: Final = _WANTED | frozenset(_ATTRIBUTES) | {_TRACEPARENT}
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rb';[ \t]*(?:(%b)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|%b))?[ \t]*' % (_TOKEN, _TOKEN))
_UTF8: Final = (b"utf-8", b"utf8")
_ESCAPED: Final = re.compile(rb"\\(.)")
_BODY_STARTS: Final = frozenset(b"{[ \t\r\n")
_GZIP: Final = (b"gzip", b"x-gzip")
"""Two names of one encoding (RFC 9110, section 8.4.1.3)."""
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
    gzipped: bool = False
    """Whether the body is compressed, which a bulk load's alone may be."""


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
    if content_length is not None and not (content_length.isdigit() and len(content_length) <= LENGTH_MAX_DIGITS):
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
        mode == "lines" and _encoding(values) in _GZIP,
    )


def require_one_reading(body: bytes, *, gzipped: bool = False) -> None:
    """Raise Problem (400) for a body that could be read as the end of another id and timestamp, or in another encoding.

    A signature covers `id.timestamp.body`. A body begins with `{`, `[` or white space, a compressed one with the byte
    1F, and a `webhook-id` holds none of these. So the first of them, if there is one, begins the body; the timestamp
    before it has digits alone, and signed bytes are one message. `content-encoding` is not signed: the body says it.
    """
    if gzipped:
        if not body.startswith(GZIP_START):
            raise Problem("malformed-body", "The body is no gzip content, which content-encoding says that it is.")
    elif body and body[0] not in _BODY_STARTS:
        raise Problem("malformed-body", "The body must begin with {, [ or white space.")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _attributes(values: dict[bytes, bytes], message_id: bytes) -> dict[str, str]:
    """Return the attributes of a binary CloudEvent, decoded as its HTTP binding says (section 3.1.3.2).

    The signature covers `webhook-id` and not these headers, so the event's id, decoded, must be equal to it. Else
    whoever has seen one request could send its body again as another event.
    """
    attributes = {}
    for header, name in _ATTRIBUTES.items():
        if header not in values:
            raise _malformed(f"{header.decode('ascii')} is missing")
        attributes[name] = _decoded(values[header])
    if _TRACEPARENT in values:
        attributes["traceparent"] = _decoded(values[_TRACEPARENT])
    if attributes["id"] != message_id.decode("ascii"):
        raise _malformed("ce-id must be equal to webhook-id, which is what was signed")
    return attributes


def _decoded(value: bytes) -> str:
    r"""Return an attribute from its header: first unquoted, then percent-decoded once.

    >>> _decoded(b"urn:a%20b"), _decoded(rb'"a \"b\" 100%25"'), _decoded(b"%2525")
    ('urn:a b', 'a "b" 100%', '%25')
    """
    if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"'):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    return unquote(value.decode("latin-1"), errors="replace")


def _webhook_mode(values: dict[bytes, bytes]) -> Mode:
    content_type = values.get(b"content-type", b"")
    if content_type != _JSON_TYPE and _kind_in_utf8(content_type) != _JSON_TYPE:
        raise Problem("media-type", "Send application/json, in UTF-8.", headers=(CLOSE,))
    _refuse_encodings(values, "webhook")
    return "webhook"


def _cloud_event_mode(values: dict[bytes, bytes]) -> Mode:
    content_type = values.get(b"content-type", b"")
    mode = _CLOUD_EVENT_MODES.get(content_type)
    if mode is None:
        kind = _kind_in_utf8(content_type)
        mode = _CLOUD_EVENT_MODES.get(kind, "binary" if kind.endswith((b"/json", b"+json")) else None)
    if mode is None or (mode == "binary" and b"ce-specversion" not in values):
        raise Problem("media-type", _SEND_ONE_OF, headers=(CLOSE,))
    _refuse_encodings(values, mode)
    return mode


def _kind_in_utf8(content_type: bytes) -> bytes:
    """Return the media type in lower case; nothing where it has another charset, or is malformed.

    Other parameters are legal and mean nothing here (RFC 9110, section 8.3.1).
    """
    kind, semicolon, _ = content_type.partition(b";")
    at = len(kind)
    while semicolon and at < len(content_type):
        parameter = _PARAMETER.match(content_type, at)
        if parameter is None:
            return b""
        name, value = parameter[1], parameter[2]
        if name is not None and name.lower() == b"charset" and value.strip(b'"').lower() not in _UTF8:
            return b""
        at = parameter.end()
    return kind.strip().lower()


def _encoding(values: dict[bytes, bytes]) -> bytes:
    return values.get(b"content-encoding", b"identity").strip().lower()


def _refuse_encodings(values: dict[bytes, bytes], mode: Mode) -> None:
    encoding = _encoding(values)
    if mode == "lines" and encoding not in (b"identity", *_GZIP):
        detail = "Send the body of a bulk load without a content encoding, or with gzip."
        raise Problem("media-type", detail, headers=((b"accept-encoding", b"gzip"), CLOSE))
    if mode != "lines" and encoding != b"identity":
        detail = "Send the body without a content encoding."
        raise Problem("media-type", detail, headers=((b"accept-encoding", b"identity"), CLOSE))


def _malformed(what: str) -> Problem:
    return Problem("malformed-headers", what, headers=(CLOSE,))
