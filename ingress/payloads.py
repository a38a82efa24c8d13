"""Request bodies into events. Pure; whatever would be poison later is refused here.

A webhook's body is a Standard Webhooks payload, `{"type", "timestamp", "data"}`; `data` holds the event's fields less
`event_id` and `occurred_at`, which come from the message's id and timestamp. A CloudEvent has `id`, `source`, `time`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from ingress.problems import FieldError, Problem, json_pointer
from schemas.entity_states import NO_NUL
from schemas.event_id import event_id
from schemas.events import EVENT_TYPES, Event

OUTSIDE_PREFIX: Final = "genesis."
"""Event types that may come from outside; Plant's own operations may not."""

NOT_JSON: Final = "The body is not JSON in UTF-8."

TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

_GIVEN_OTHERWISE: Final = ("event_id", "occurred_at")
_JSON_TYPE: Final = "application/json"
_PLAIN_TEXT: Final = r"^[!-~]{1,256}\Z"
_FIELD_NAME: Final = re.compile(r"^Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)
_NUL_REFUSED: Final = f"matching regex {NO_NUL!r}"
_SHOWN_MAX: Final = 200

T = TypeVar("T")
Time = Annotated[datetime, Meta(tz=True)]
Build = Callable[[msgspec.Struct, str, str, datetime], Event]


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes that every CloudEvent has here."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(pattern=_PLAIN_TEXT)]
    source: Annotated[str, Meta(pattern=_PLAIN_TEXT)]
    type: str
    time: Time


class CloudEvent(Attributes, frozen=True, kw_only=True):
    """A structured CloudEvent 1.0 in JSON; extensions other than `traceparent` are passed over.

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


class Shape(msgspec.Struct, frozen=True):
    """How one event type is read: its webhook, its data alone, its fields, and which of them are times."""

    kind: type[Event]
    webhook: msgspec.json.Decoder[Any]
    data: msgspec.json.Decoder[Any]
    names: tuple[str, ...]
    times: tuple[str, ...]


def read_webhook(body: bytes, event_type: str, producer: str, message_id: str, source: str) -> Incoming:
    """The event in a webhook's body. Raises Problem: malformed-body (400) or event (422)."""
    shape = _shape(event_type)
    _require_utf8(body)
    payload = _decode(shape.webhook, body)
    if payload.type not in (None, event_type):
        raise _unfit(f"Expected {event_type}", "#/type")
    return Incoming(_event(shape, payload.data, producer, message_id, payload.timestamp, "#/timestamp"), source)


def read_cloud_event(body: bytes, producer: str) -> Incoming:
    """The event in a structured CloudEvent. Raises Problem: malformed-body (400) or event (422)."""
    _require_utf8(body)
    envelope = _decode(_CLOUD_EVENT, body)
    if not is_accepted(envelope.type):
        raise _unfit("This event type is not known", "#/type")
    content_type = envelope.datacontenttype
    if content_type != _JSON_TYPE and content_type.partition(";")[0].strip().lower() != _JSON_TYPE:
        raise _unfit(f"Expected {_JSON_TYPE}", "#/datacontenttype")
    event = read_data(envelope.type, bytes(envelope.data), producer, envelope.id, envelope.time)
    return Incoming(event, envelope.source, valid_traceparent(envelope.traceparent))


def read_binary(body: bytes, attributes: dict[str, str], producer: str) -> Incoming:
    """The event of a CloudEvent in binary mode. Raises Problem: malformed-headers or -body (400), event (422).

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
    """
    _require_utf8(body)
    try:
        said = msgspec.convert(attributes, Attributes)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        raise Problem("malformed-headers", f"ce-{path.rstrip('`')}: {what}"[:_SHOWN_MAX]) from None
    if not is_accepted(said.type):
        raise Problem("event", "ce-type: this event type is not known")
    return Incoming(read_data(said.type, body, producer, said.id, said.time, under="$"), said.source)


def read_data(
    event_type: str, data: bytes, producer: str, message_id: str, time: datetime, under: str = "$.data"
) -> Event:
    """An event from its JSON data alone, which stands at `under` in the body.

    `event_type` must be one that `is_accepted` says yes to. Raises Problem: malformed-body (400) or event (422).
    """
    shape = _shape(event_type)
    return _event(shape, _decode(shape.data, data, under), producer, message_id, time, "#/time")


def _require_utf8(body: bytes) -> None:
    """Raises Problem (malformed-body) where it is not. Decoders don't look into fields that they pass over."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise Problem("malformed-body", NOT_JSON, reason="UnicodeDecodeError") from None


def is_accepted(event_type: str) -> bool:
    """Whether events of this type may come from outside."""
    return event_type in EVENT_TYPES and event_type.startswith(OUTSIDE_PREFIX)


def valid_traceparent(traceparent: str | None) -> str | None:
    """The trace's parent if it is well-formed (W3C Trace Context, version 00), else None: it is never worth an error.

    >>> valid_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    >>> valid_traceparent("00-0-0-0")
    """
    return traceparent if traceparent is not None and TRACEPARENT.fullmatch(traceparent) else None


_CLOUD_EVENT: Final = msgspec.json.Decoder(CloudEvent)


@cache
def _shape(event_type: str) -> Shape:
    kind = EVENT_TYPES[event_type]
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in _GIVEN_OTHERWISE]
    data_type = msgspec.defstruct(
        f"{kind.__name__}Data",
        [(field.name, field.type) if field.required else (field.name, field.type, field.default) for field in fields],
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    webhook_type = msgspec.defstruct(
        f"{kind.__name__}Webhook",
        [("timestamp", Time), ("data", data_type), ("type", str | None, None)],
        frozen=True,
        kw_only=True,
    )
    return Shape(
        kind,
        msgspec.json.Decoder(webhook_type),
        msgspec.json.Decoder(data_type),
        tuple(field.name for field in fields),
        tuple(field.name for field in fields if _is_time(field.type)),
    )


def _is_time(kind: object) -> bool:
    """Whether a field holds a time, or may."""
    return kind is datetime or any(map(_is_time, get_args(kind)))


def _event(
    shape: Shape, data: msgspec.Struct, producer: str, message_id: str, time: datetime, time_pointer: str
) -> Event:
    values: dict[str, Any] = {name: getattr(data, name) for name in shape.names}
    for name in shape.times:
        if values[name] is not None:
            values[name] = _in_utc(values[name], f"#/data/{name}")
    values["event_id"] = event_id(producer, message_id)
    values["occurred_at"] = _in_utc(time, time_pointer)
    try:
        return shape.kind(**values)
    except ValueError as error:  # a rule over several fields, such as "exactly one state"
        raise _unfit(str(error), "#/data") from None


def _in_utc(time: datetime, pointer: str) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise _unfit("This time is outside the calendar", pointer) from None


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, under: str = "$") -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        pointer = json_pointer(under + path.rstrip("`").removeprefix("$"))
        field = _FIELD_NAME.search(what)
        raise _unfit(what, f"{pointer}/{field[1]}" if field else pointer) from None
    except RecursionError:
        raise Problem("malformed-body", "The body is nested too deeply.") from None
    except ValueError as error:  # malformed JSON, bad UTF-8
        raise Problem("malformed-body", NOT_JSON, reason=type(error).__name__) from None


def _unfit(what: str, pointer: str) -> Problem:
    if _NUL_REFUSED in what:
        what = "NUL characters are not allowed"
    error = FieldError(detail=what[:_SHOWN_MAX], pointer=pointer[:_SHOWN_MAX])
    return Problem("event", errors=(error,), reason=f"{error.detail} at {error.pointer}")
