"""Files of events: a JSON object a line, `{"type", "data", "id"?, "timestamp"?}`.

A line without an id gets one from its content, so publishing a file again stores nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ingress.payloads import is_accepted, read_data
from ingress.problems import Problem
from schemas.events import Event

LINE_MAX_BYTES: Final = 1024 * 1024


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event as it is written in a file."""

    type: str
    data: msgspec.Raw
    id: Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[!-~]+\Z")] | None = None
    timestamp: Annotated[datetime, Meta(tz=True)] | None = None


class Invalid(msgspec.Struct, frozen=True):
    """A line that is no event, and why."""

    number: int
    reason: str


def read_lines(lines: Iterable[bytes], producer: str, now: datetime) -> Iterator[Event | Invalid]:
    """Each line's event, or why it is none; empty lines are passed over. `now` stands in for a missing timestamp."""
    for number, line in enumerate(lines, 1):
        content = line.strip()
        if content:
            yield _read(number, content, producer, now)


def _read(number: int, content: bytes, producer: str, now: datetime) -> Event | Invalid:
    if len(content) > LINE_MAX_BYTES:
        return Invalid(number, f"longer than {LINE_MAX_BYTES} bytes")
    try:
        line = _DECODER.decode(content)
    except (ValueError, RecursionError) as error:
        return Invalid(number, str(error) or type(error).__name__)
    if not is_accepted(line.type):
        return Invalid(number, f"the event type {line.type[:80]!r} is not known")
    message_id = line.id or f"line-{sha256(content).hexdigest()[:32]}"
    try:
        return read_data(line.type, bytes(line.data), producer, message_id, line.timestamp or now)
    except Problem as problem:
        return Invalid(number, problem.reason)


_DECODER: Final = msgspec.json.Decoder(Line)
