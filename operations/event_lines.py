"""Files of events: one JSON object on each line, `{"type", "data", "id"?, "timestamp"?}`.

A line without an id gets one from its content, so publishing a file again stores nothing twice. That is the event's own
content: the order of fields, white space and defaults that are spelled out change no id.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import msgspec

from schemas.clock_fields import ClockStamped
from schemas.control import CONTROL_TYPES
from schemas.entity_states import Time
from schemas.errors import InvalidEvent
from schemas.event_id import event_id
from schemas.events import Event
from schemas.json_events import MessageId, decode_json, is_accepted, not_accepted, read_json_event, unfit
from schemas.sender_headers import EventOfSender, sender_headers

LINE_MAX_BYTES: Final = 1024 * 1024


class EventLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event as it is written in a file."""

    type: str
    data: msgspec.Raw
    id: MessageId | None = None
    timestamp: Time | None = None


class InvalidLine(msgspec.Struct, frozen=True):
    """A line that is no event, and why."""

    number: int
    reason: str


def read_lines(lines: Iterable[bytes], producer: str, now: datetime) -> Iterator[Event | ClockStamped | InvalidLine]:
    """Yield what `read_sent_lines` yields, without the senders."""
    for read in read_sent_lines(lines, producer, now):
        yield read.event if isinstance(read, EventOfSender) else read


def read_sent_lines(lines: Iterable[bytes], producer: str, now: datetime) -> Iterator[EventOfSender | InvalidLine]:
    """Yield each line's event, or why it is none; empty lines are skipped.

    An event without a timestamp gets `now` and is clock-stamped.
    """
    for number, line in enumerate(lines, 1):
        # Some editors and exports begin a file with a byte order mark.
        content = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if not content:
            continue
        if len(content) > LINE_MAX_BYTES:
            yield InvalidLine(number, f"longer than {LINE_MAX_BYTES} bytes")
            continue
        try:
            yield _read_line(content, producer, now)
        except InvalidEvent as error:
            yield InvalidLine(number, f"The line is {error.detail}." if error.pointer is None else error.reason)


def number_lines(
    lines: Iterable[bytes], producer: str, now: datetime
) -> Iterator[tuple[int, EventOfSender | InvalidLine]]:
    """Yield what `read_sent_lines` yields, each with the number of its line, from 1."""
    number = 0

    def counted() -> Iterator[bytes]:
        nonlocal number
        for number, line in enumerate(lines, 1):  # noqa: B007 (read below, whenever an event is yielded)
            yield line

    for read in read_sent_lines(counted(), producer, now):
        yield number, read


def _read_line(content: bytes, producer: str, now: datetime) -> EventOfSender:
    line = decode_json(_DECODER, content)
    if line.type in CONTROL_TYPES:
        raise unfit(not_accepted(line.type), "#/type")
    if not is_accepted(line.type):
        raise unfit(f"The event type {line.type[:80]!r} is not known", "#/type")
    event = read_json_event(line.type, bytes(line.data), _NO_ID, line.timestamp or now)
    message_id = line.id or f"line-{_content_digest(event, timed=line.timestamp is not None)[:32]}"
    event = msgspec.structs.replace(event, event_id=event_id(producer, message_id))
    stamped = event if line.timestamp is not None else ClockStamped(event)
    return EventOfSender(stamped, sender_headers(producer, message_id))


def _content_digest(event: Event, *, timed: bool) -> str:
    """Return the SHA-256, in hex, of the event's JSON with sorted keys, less its id, nulls, and a time not its own.

    Nulls are what every optional field has by default, so the digest stays when a later release adds a field.
    """
    fields = _without_nulls(msgspec.to_builtins(event))
    del fields["event_id"]
    if not timed:
        del fields["occurred_at"]
    content = msgspec.json.encode({"type": event.event_type, "data": fields}, order="sorted")
    return sha256(content).hexdigest()


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


_NO_ID: Final = UUID(int=0)
_DECODER: Final = msgspec.json.Decoder(EventLine)
