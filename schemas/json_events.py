"""An event read from JSON and checked against the limits of its type.

What would be poison later, or would be taken for something else, is refused here by one error: `InvalidEvent` points to
the field that does not fit. Ingress and `plant publish` read through this module, so they accept the same events.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Final, TypeVar, get_args
from uuid import UUID

import msgspec
from msgspec import Meta

from schemas.control import CONTROL_TYPES
from schemas.entity_states import NO_NUL
from schemas.errors import InvalidEvent
from schemas.events import EVENT_TYPES, Event
from schemas.leap_seconds import without_leap_second

OUTSIDE_PREFIX: Final = "genesis."
"""Event types that may come from outside; Plant's own operations may not."""

NOT_JSON: Final = "not JSON in UTF-8"
NESTED_TOO_DEEPLY: Final = "nested too deeply"
DETAIL_MAX_CHARACTERS: Final = 200

MessageId = Annotated[str, Meta(pattern=r"^[!-~]{1,256}\Z")]
"""The sender's own id of a message: printable ASCII without spaces, as a header can hold it."""

_SET_BY_PLANT: Final = ("event_id", "occurred_at")
_FIELD_NAME: Final = re.compile(r"^Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)
_NO_TIME: Final = "Invalid RFC3339 encoded datetime"
_NUL_REFUSED: Final = f"matching regex {NO_NUL!r}"

Decoded = TypeVar("Decoded")


class JsonEventType(msgspec.Struct, frozen=True):
    """One event type as JSON brings it: its struct, its data's struct and decoder, and which fields hold times."""

    event: type[Event]
    data: type[msgspec.Struct]
    decoder: msgspec.json.Decoder[Any]
    names: tuple[str, ...]
    times: tuple[str, ...]


def is_accepted(event_type: str) -> bool:
    """Return whether events of this type may come from outside."""
    return event_type in EVENT_TYPES and event_type.startswith(OUTSIDE_PREFIX)


def not_accepted(event_type: str) -> str:
    """Return why events of a type do not come from outside; a control type is named.

    >>> not_accepted("plant.record.skipped")
    'plant.record.skipped is a control record, which operators alone publish'
    >>> not_accepted("genesis.agent.promoted")
    'This event type is not known'
    """
    if event_type in CONTROL_TYPES:
        return f"{event_type} is a control record, which operators alone publish"
    return "This event type is not known"


def read_json_event(event_type: str, data: bytes, event_id: UUID, time: datetime, under: str = "$.data") -> Event:
    """Return an event from its JSON data alone, which stands at the path `under` in the body.

    `event_type` must be one for which `is_accepted` is true. Raises InvalidEvent.
    """
    kind = json_event_type(event_type)
    return make_event(kind, decode_json(kind.decoder, data, under), event_id, time, "#/time")


def make_event(kind: JsonEventType, data: msgspec.Struct, event_id: UUID, time: datetime, time_pointer: str) -> Event:
    """Return the event of decoded data, its times in UTC; `time_pointer` is where `time` stands in the body.

    Raises InvalidEvent for a time outside the calendar, where a rule over several fields is broken, and for the nil id
    in one of the type's `fields_without_nil`.
    """
    values: dict[str, Any] = {name: getattr(data, name) for name in kind.names}
    for name in kind.times:
        if values[name] is not None:
            values[name] = _in_utc(values[name], f"#/data/{name}")
    values["event_id"] = event_id
    values["occurred_at"] = _in_utc(time, time_pointer)
    try:
        event = kind.event(**values)
    except ValueError as error:  # a rule over several fields, such as "exactly one state"
        raise unfit(str(error), "#/data") from None
    if (nil_field := event.nil_field) is not None:
        raise unfit("The nil id names nothing: leave the field out, or send null", f"#/data/{nil_field}")
    return event


def decode_json(decoder: msgspec.json.Decoder[Decoded], body: bytes, under: str = "$") -> Decoded:
    """Decode and check a JSON text that stands at the path `under`. Raises InvalidEvent."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `")
        path = path.rstrip("`")
        if detail == _NO_TIME and (mended := without_leap_second(body, path)) is not None:
            return decode_json(decoder, mended, under)
        pointer = json_pointer(under + path.removeprefix("$"))
        field = _FIELD_NAME.search(detail)
        raise unfit(detail, f"{pointer}/{field[1]}" if field else pointer) from None
    except RecursionError:
        raise InvalidEvent(NESTED_TOO_DEEPLY) from None
    except ValueError as error:  # malformed JSON, bad UTF-8
        raise InvalidEvent(NOT_JSON, cause=type(error).__name__) from None


def require_utf8(body: bytes) -> None:
    """Raise InvalidEvent where the bytes are no UTF-8: decoders don't look into fields that they skip."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise InvalidEvent(NOT_JSON, cause="UnicodeDecodeError") from None


def unfit(detail: str, pointer: str) -> InvalidEvent:
    """Return the error for a field that does not fit; what the sender wrote is quoted in part at most."""
    if _NUL_REFUSED in detail:
        detail = "NUL characters are not allowed"
    return InvalidEvent(detail[:DETAIL_MAX_CHARACTERS], pointer[:DETAIL_MAX_CHARACTERS])


@cache
def json_event_type(event_type: str) -> JsonEventType:
    """Return how events of this type are read; made once a process."""
    event = EVENT_TYPES[event_type]
    fields = [field for field in msgspec.structs.fields(event) if field.name not in _SET_BY_PLANT]
    data = msgspec.defstruct(
        f"{event.__name__}Data",
        [(field.name, field.type) if field.required else (field.name, field.type, field.default) for field in fields],
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return JsonEventType(
        event,
        data,
        msgspec.json.Decoder(data),
        tuple(field.name for field in fields),
        tuple(field.name for field in fields if _may_hold_time(field.type)),
    )


def json_pointer(path: str) -> str:
    """Return msgspec's path as a JSON pointer in a URI fragment (RFC 6901, section 6).

    >>> json_pointer("$.data.skill_ids[3]")
    '#/data/skill_ids/3'
    >>> json_pointer("$")
    '#'
    """
    parts = path.removeprefix("$").replace("[", ".").replace("]", "").split(".")
    return "#" + "".join("/" + part for part in parts if part)


def _may_hold_time(kind: object) -> bool:
    return kind is datetime or any(map(_may_hold_time, get_args(kind)))


def _in_utc(time: datetime, pointer: str) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise unfit("This time is outside the calendar", pointer) from None
