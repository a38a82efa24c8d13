"""Request bodies read as events: webhooks, and CloudEvents in structured and in binary mode.

A webhook's body is a Standard Webhooks payload, `{"type", "timestamp", "data"}`; `data` holds the event's fields less
`event_id` and `occurred_at`, which come from the message's id and timestamp. A CloudEvent has `id`, `source`, `time`;
`source` and `id` together are its identity, since two systems may count from 1.
The events themselves are read and checked in schemas/json_events.py.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from ingress.problems import FieldError, Problem
from schemas.entity_states import Time
from schemas.errors import InvalidEvent
from schemas.event_id import cloud_event_id, event_id
from schemas.events import Event
from schemas.json_events import (
    DETAIL_MAX_CHARACTERS,
    NOT_JSON,
    JsonEventType,
    MessageId,
    decode_json,
    is_accepted,
    json_event_type,
    make_event,
    read_json_event,
    require_utf8,
    unfit,
)

TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

BODY_NOT_JSON: Final = f"The body is {NOT_JSON}."

_JSON_TYPE: Final = "application/json"


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes that every CloudEvent has here."""

    specversion: Literal["1.0"]
    id: MessageId
    source: Annotated[str, Meta(pattern=r"^[!-~]{1,256}\Z")]
    type: str
    time: Time


class CloudEvent(Attributes, frozen=True, kw_only=True):
    """A structured CloudEvent 1.0 in JSON; extensions other than `traceparent` are skipped.

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
    """

    data: msgspec.Raw
    datacontenttype: str = _JSON_TYPE
    traceparent: str | None = None


class Incoming(msgspec.Struct, frozen=True):
    """An event as it was sent, with what its record's headers need."""

    event: Event
    source: str
    traceparent: str | None = None


def read_webhook(body: bytes, event_type: str, producer: str, message_id: str, source: str) -> Incoming:
    """Return the event in a webhook's body. Raises Problem: malformed-body (400) or event (422)."""
    kind, decoder = _webhook(event_type)
    try:
        require_utf8(body)
        payload = decode_json(decoder, body)
        if payload.type not in (None, event_type):
            raise unfit(f"Expected {event_type}", "#/type")
        event = make_event(kind, payload.data, event_id(producer, message_id), payload.timestamp, "#/timestamp")
    except InvalidEvent as error:
        raise problem_of(error) from None
    return Incoming(event, source)


def read_cloud_event(body: bytes, producer: str) -> Incoming:
    """Return the event in a structured CloudEvent. Raises Problem: malformed-body (400) or event (422)."""
    try:
        require_utf8(body)
        envelope = decode_json(_CLOUD_EVENT, body)
        if not is_accepted(envelope.type):
            raise unfit("This event type is not known", "#/type")
        content_type = envelope.datacontenttype
        if content_type != _JSON_TYPE and content_type.partition(";")[0].strip().lower() != _JSON_TYPE:
            raise unfit(f"Expected {_JSON_TYPE}", "#/datacontenttype")
        identity = cloud_event_id(producer, envelope.source, envelope.id)
        event = read_json_event(envelope.type, bytes(envelope.data), identity, envelope.time)
    except InvalidEvent as error:
        raise problem_of(error) from None
    return Incoming(event, envelope.source, valid_traceparent(envelope.traceparent))


def read_binary(body: bytes, attributes: dict[str, str], producer: str) -> Incoming:
    """Return the event of a CloudEvent in binary mode.

    Raises Problem: malformed-headers or malformed-body (400), event (422).
    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
    """
    try:
        require_utf8(body)
        try:
            envelope = msgspec.convert(attributes, Attributes)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$.")
            detail = f"ce-{path.rstrip('`')}: {what}"[:DETAIL_MAX_CHARACTERS]
            raise Problem("malformed-headers", detail) from None
        if not is_accepted(envelope.type):
            raise Problem("event", "ce-type: this event type is not known")
        identity = cloud_event_id(producer, envelope.source, envelope.id)
        event = read_json_event(envelope.type, body, identity, envelope.time, under="$")
    except InvalidEvent as error:
        raise problem_of(error) from None
    return Incoming(event, envelope.source)


def problem_of(error: InvalidEvent) -> Problem:
    """Return the answer to a body that is not one event: 422 with a pointer, or 400 where it is no JSON."""
    if error.pointer is None:
        return Problem("malformed-body", f"The body is {error.detail}.", reason=error.cause)
    return Problem("event", errors=(FieldError(error.detail, error.pointer),), reason=error.reason)


def valid_traceparent(traceparent: str | None) -> str | None:
    """Return the trace's parent if it is well-formed (W3C Trace Context, version 00), else None: it is no error.

    >>> valid_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    >>> valid_traceparent("00-0-0-0")
    """
    return traceparent if traceparent is not None and TRACEPARENT.fullmatch(traceparent) else None


_CLOUD_EVENT: Final = msgspec.json.Decoder(CloudEvent)


@cache
def _webhook(event_type: str) -> tuple[JsonEventType, msgspec.json.Decoder[Any]]:
    """Return the event type, and the decoder of a webhook's whole body."""
    kind = json_event_type(event_type)
    webhook = msgspec.defstruct(
        f"{kind.event.__name__}Webhook",
        [("timestamp", Time), ("data", kind.data), ("type", str | None, None)],
        frozen=True,
        kw_only=True,
    )
    return kind, msgspec.json.Decoder(webhook)
