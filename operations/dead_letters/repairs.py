"""A file of repaired events: a JSON object on each line, which names a dead letter and holds its event.

All lines are checked before anything is published, by what `plant publish` checks events with, and against the
log. Some 500 bytes of each line are kept; the file is read once more, in the order of positions, to publish it.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from itertools import groupby
from typing import IO, Annotated, Final, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta

from operations.dead_letters.controls import Control, repair_of, repaired
from operations.dead_letters.dead_letter import DeadLetter
from operations.dead_letters.errors import BadRepair, NoDeadLetter
from operations.dead_letters.search import LOOKED_UP_MAX, DeadLetterSearch
from runtime.errors import CheckFailed
from schemas import codec
from schemas.entity_states import Time
from schemas.errors import InvalidEvent, Unencodable
from schemas.events import Event
from schemas.json_events import decode_json, is_accepted, not_accepted, read_json_event, unfit
from streams.record_position import RecordPosition
from streams.topics import logical_topic

LINE_MAX_BYTES: Final = 8 * 1024 * 1024
"""Of a line: the event may have 1 MiB in Avro, and more in JSON; what `list` writes beside it counts too."""
READ_BYTES: Final = 8 * 1024 * 1024
"""Lines of this size are checked at a time, or LOOKED_UP_MAX of them."""


class RepairedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event as `plant publish` reads it, but that `id` is the event's own; by default the dead letter's is taken."""

    type: str
    data: msgspec.Raw
    id: UUID | None = None
    timestamp: Time | None = None


class RepairedLine(msgspec.Struct, frozen=True):
    """A dead letter and its event. What else `plant dead-letters list` writes into a line is not looked at."""

    topic: str
    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    offset: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    event: msgspec.Raw

    @property
    def position(self) -> RecordPosition:
        """The dead letter's position."""
        return RecordPosition(self.topic, self.partition, self.offset)


class CheckedLine(NamedTuple):
    """A line that can be published: the dead letter, where the line begins in the file, and what it takes from it."""

    position: RecordPosition
    start: int
    event_id: UUID
    occurred_at: datetime


class NumberedLine(NamedTuple):
    """A line by its number and its first byte in the file, or why it can't be read."""

    number: int
    start: int
    line: RepairedLine | InvalidEvent


class RepairsFile:
    """The lines of a file that nobody else writes. Check it, then read its control records."""

    def __init__(self, file: IO[bytes], reason: str) -> None:
        """`reason` is the operator's."""
        self._file = file
        self._reason = reason
        self._checked: list[CheckedLine] = []
        self._numbers: dict[RecordPosition, int] = {}
        self._ids: dict[UUID, int] = {}
        self.resolved = 0
        """Lines whose dead letter was redriven or skipped before: they are left out."""

    async def check(self, search: DeadLetterSearch) -> AsyncIterator[Control]:
        """Yield the control record of each line in the order of lines. Raises BadRepair for the first bad one."""
        for lines in _chunked(_numbered(self._file)):
            found = await _look_up(
                search, [each.line.position for each in lines if isinstance(each.line, RepairedLine)]
            )
            for number, start, line in lines:
                try:
                    control = await self._check_line(search, number, start, line, found)
                except BadRepair:
                    raise
                except InvalidEvent as error:
                    raise BadRepair(number, error.reason) from error
                except (CheckFailed, Unencodable) as error:
                    raise BadRepair(number, f"{error.what} {error.why}".rstrip(".")) from error
                if control is not None:
                    yield control
        self._checked.sort()

    async def controls(self) -> AsyncIterator[Control]:
        """Yield the control records of the lines that were checked, by topic, partition and offset."""
        for position, start, event_id, occurred_at in self._checked:
            self._file.seek(start)
            line = _read_line(self._file.readline(LINE_MAX_BYTES + 1))
            event = _event_of(line, event_id, occurred_at)
            yield repaired(position, event, self._reason)

    async def _check_line(
        self,
        search: DeadLetterSearch,
        number: int,
        start: int,
        line: RepairedLine | InvalidEvent,
        found: dict[RecordPosition, DeadLetter],
    ) -> Control | None:
        """Return a line's control record; None where its dead letter is resolved already."""
        if isinstance(line, InvalidEvent):
            raise line
        position = line.position
        if (other := self._numbers.setdefault(position, number)) != number:
            raise BadRepair(number, f"Line {other} is of the same record")
        dead_letter = found.get(position)
        if dead_letter is None:
            raise await search.not_logged(position)
        if dead_letter.row.disposition != "poison":
            raise NoDeadLetter(position, dead_letter.row.disposition)
        if dead_letter.resolved_at is not None:
            self.resolved += 1
            return None
        event = _event_of(line, dead_letter.event_id, dead_letter.occurred_at)
        control = repair_of(dead_letter, event, self._reason)
        _require_entity(event, dead_letter)
        if (other := self._ids.setdefault(event.event_id, number)) != number:
            raise BadRepair(number, f"Line {other} has the same event id, {event.event_id}")
        self._checked.append(CheckedLine(position, start, event.event_id, event.occurred_at))
        return control


def _require_entity(event: Event, dead_letter: DeadLetter) -> None:
    """Raise InvalidEvent unless the event is of the record's topic and of its key's entity."""
    topic = dead_letter.row.topic
    if not event.belongs_on(logical_topic(topic)):
        raise unfit(f"{event.event_type} does not belong on {topic}", "#/event/type")
    if codec.key(event) != dead_letter.row.key:
        why = f"The event is about {event.entity_id}, and the record's key is {dead_letter.entity_id}"
        raise unfit(why, f"#/event/data/{event.entity_field}")


def _event_of(line: RepairedLine, event_id: UUID, occurred_at: datetime) -> Event:
    """Return a line's event; id and time by default are these. Raises InvalidEvent."""
    repair = decode_json(_EVENT, bytes(line.event), "$.event")
    if not is_accepted(repair.type):
        raise unfit(not_accepted(repair.type), "#/event/type")
    time = repair.timestamp or occurred_at
    return read_json_event(repair.type, bytes(repair.data), repair.id or event_id, time, "$.event.data")


def _read_line(line: bytes) -> RepairedLine:
    return decode_json(_LINE, line)


def _numbered(file: IO[bytes]) -> Iterator[NumberedLine]:
    """Yield each line that is not empty. One that is too long ends the reading: it is an error of the whole file."""
    number = 0
    while True:
        start = file.tell()
        content = file.readline(LINE_MAX_BYTES + 1)
        if not content:
            return
        number += 1
        if len(content) > LINE_MAX_BYTES:
            raise BadRepair(number, f"It is longer than {LINE_MAX_BYTES} bytes")
        if number == 1 and content.startswith(codecs.BOM_UTF8):
            start, content = start + len(codecs.BOM_UTF8), content.removeprefix(codecs.BOM_UTF8)
        if content.strip():
            yield NumberedLine(number, start, _read_or_why(content))


def _read_or_why(content: bytes) -> RepairedLine | InvalidEvent:
    try:
        return _read_line(content)
    except InvalidEvent as error:
        return error


def _chunked(lines: Iterator[NumberedLine]) -> Iterator[list[NumberedLine]]:
    chunk: list[NumberedLine] = []
    first = 0
    for line in lines:
        if chunk and (len(chunk) == LOOKED_UP_MAX or line.start - first > READ_BYTES):
            yield chunk
            chunk = []
        if not chunk:
            first = line.start
        chunk.append(line)
    if chunk:
        yield chunk


async def _look_up(search: DeadLetterSearch, positions: list[RecordPosition]) -> dict[RecordPosition, DeadLetter]:
    found = {}
    for (topic, partition), group in groupby(sorted(set(positions)), key=lambda each: (each.topic, each.partition)):
        offsets = [each.offset for each in group]
        for dead_letter in (await search.look_up(topic, partition, offsets, whole=False)).values():
            found[dead_letter.position] = dead_letter
    return found


_LINE: Final = msgspec.json.Decoder(RepairedLine)
_EVENT: Final = msgspec.json.Decoder(RepairedEvent)
