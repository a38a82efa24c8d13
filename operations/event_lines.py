"""Files of events: one JSON object on each line, `{"type", "data", "id"?, "timestamp"?}`.

A line without an id gets one from its content, so publishing a file again stores nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from typing import Final

import msgspec

from schemas.entity_states import Time
from schemas.errors import InvalidEvent
from schemas.event_id import event_id
from schemas.events import Event
from schemas.json_events import MessageId, decode_json, is_accepted, read_json_event, unfit

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


def read_lines(lines: Iterable[bytes], producer: str, now: datetime) -> Iterator[Event | InvalidLine]:
    """Yield each line's event, or why it is none; empty lines are skipped. `now` replaces a missing timestamp."""
    for number, line in enumerate(lines, 1):
        content = line.strip()
        if not content:
            continue
        if len(content) > LINE_MAX_BYTES:
            yield InvalidLine(number, f"longer than {LINE_MAX_BYTES} bytes")
            continue
        try:
            yield _read_line(content, producer, now)
        except InvalidEvent as error:
            yield InvalidLine(number, f"The line is {error.detail}." if error.pointer is None else error.reason)


def _read_line(content: bytes, producer: str, now: datetime) -> Event:
    line = decode_json(_DECODER, content)
    if not is_accepted(line.type):
        raise unfit(f"The event type {line.type[:80]!r} is not known", "#/type")
    message_id = line.id or f"line-{sha256(content).hexdigest()[:32]}"
    return read_json_event(line.type, bytes(line.data), event_id(producer, message_id), line.timestamp or now)


_DECODER: Final = msgspec.json.Decoder(EventLine)
