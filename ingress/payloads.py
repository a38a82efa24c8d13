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
    not_accepted,
    read_json_event,
    require_utf8,
    unfit,
)
from schemas.leap_seconds import after_leap_second
from server.problems import FieldError, Problem

TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
TRACEPARENT_MAX_BYTES: Final = 512
"""In JSON, where each of its 55 characters may be an escape."""

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

    An optional attribute that is null is one that is left out, as the format says, and a trace of any form is taken.
    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
    """

    data: msgspec.Raw = msgspec.Raw()
    data_base64: bytes | None = None
    datacontenttype: str | None = None
    traceparent: msgspec.Raw = msgspec.Raw()


class Incoming(msgspec.Struct, frozen=True):
    """An event as it was sent, with what its record's headers need."""

    event: Event
    source: str
    message_id: str
    """The sender's own id: the webhook's, or the CloudEvent's."""
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
    return Incoming(event, source, message_id)


def read_cloud_event(body: bytes, producer: str) -> Incoming:
    """Return the event in a structured CloudEvent. Raises Problem: malformed-body (400) or event (422)."""
    try:
        require_utf8(body)
        envelope = decode_json(_CLOUD_EVENT, body)
        if not is_accepted(envelope.type):
            raise unfit(not_accepted(envelope.type), "#/type")
        if envelope.datacontenttype not in (None, _JSON_TYPE) and not _is_json(envelope.datacontenttype):
            raise unfit(f"Expected {_JSON_TYPE}", "#/datacontenttype")
        identity = cloud_event_id(producer, envelope.source, envelope.id)
        data, under = _data(envelope)
        event = read_json_event(envelope.type, data, identity, envelope.time, under)
    except InvalidEvent as error:
        raise problem_of(error) from None
    return Incoming(event, envelope.source, envelope.id, _traceparent(envelope.traceparent))


def _data(envelope: CloudEvent) -> tuple[bytes, str]:
    """Return the JSON of a CloudEvent's data, and the path at which it stands. Raises InvalidEvent."""
    data = bytes(envelope.data)
    if envelope.data_base64 is None:
        if not data:
            raise unfit("Object missing required field `data`", "#/data")
        return data, "$.data"
    if data:
        raise unfit("A CloudEvent has data or data_base64, not both", "#/data_base64")
    return envelope.data_base64, "$.data_base64"


def _traceparent(raw: msgspec.Raw) -> str | None:
    """Return the trace's parent if it is well-formed. No longer JSON than one is read: it may be of any size."""
    if not raw or len(bytes(raw)) > TRACEPARENT_MAX_BYTES:
        return None
    try:
        return valid_traceparent(msgspec.json.decode(raw))
    except (ValueError, RecursionError):
        return None


def _is_json(content_type: str | None) -> bool:
    """Return whether a media type is JSON, as the JSON format of CloudEvents has it (section 3.1)."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind.endswith(("/json", "+json"))


def read_binary(body: bytes, attributes: dict[str, str], producer: str) -> Incoming:
    """Return the event of a CloudEvent in binary mode.

    Raises Problem: malformed-headers or malformed-body (400), event (422).
    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
    """
    try:
        require_utf8(body)
        time = after_leap_second(attributes["time"])
        try:
            envelope = msgspec.convert(attributes if time is None else {**attributes, "time": time}, Attributes)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$.")
            detail = f"ce-{path.rstrip('`')}: {what}"[:DETAIL_MAX_CHARACTERS]
            raise Problem("malformed-headers", detail) from None
        if not is_accepted(envelope.type):
            detail = not_accepted(envelope.type)
            raise Problem("event", f"ce-type: {detail[0].lower()}{detail[1:]}")
        identity = cloud_event_id(producer, envelope.source, envelope.id)
        event = read_json_event(envelope.type, body, identity, envelope.time, under="$")
    except InvalidEvent as error:
        raise problem_of(error) from None
    return Incoming(event, envelope.source, envelope.id, valid_traceparent(attributes.get("traceparent")))


def problem_of(error: InvalidEvent) -> Problem:
    """Return the answer to a body that is not one event: 422 with a pointer, or 400 where it is no JSON."""
    if error.pointer is None:
        return Problem("malformed-body", f"The body is {error.detail}.", reason=error.cause)
    return Problem("event", errors=(FieldError(error.detail, error.pointer),), reason=error.reason)


def valid_traceparent(traceparent: object) -> str | None:
    """Return the trace's parent if it is well-formed (W3C Trace Context, version 00), else None: it is no error.

    >>> valid_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    >>> valid_traceparent("00-0-0-0")
    """
    return traceparent if isinstance(traceparent, str) and TRACEPARENT.fullmatch(traceparent) else None


_CLOUD_EVENT: Final = msgspec.json.Decoder(CloudEvent)
msgspec.json.Decoder(Attributes)  # or threads that use it for the first time at once crash: schemas/record_types.py


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
