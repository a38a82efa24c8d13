"""The checks of a file before its events are published, in one reading: lines, ids, bytes, the producer's policy.

The file is read once more to send it. Its digest is compared then: what was sent is what was checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from typing import IO, Final
from uuid import UUID

import msgspec

from ingress.producers import StoredProducer
from operations.event_lines import LINE_MAX_BYTES, InvalidLine, number_lines
from runtime.errors import CheckFailed
from schemas.clock_fields import ClockStamped
from schemas.events import Event
from schemas.sender_headers import EventOfSender

READ_MAX_BYTES: Final = LINE_MAX_BYTES + 64 * 1024
"""Of a line; so much more than an event may have, since white space around it does not count."""
_TOO_LONG: Final = b"x" * (LINE_MAX_BYTES + 1)
_ID_BYTES: Final = 16
_CONTENT_BYTES: Final = 16
_NUMBER_BYTES: Final = 6
_ENTRY_TYPE: Final = slice(-2, None)
_ENTRY_NUMBER: Final = slice(-2 - _NUMBER_BYTES, -2)
_ENTRY_CONTENT: Final = slice(_ID_BYTES, _ID_BYTES + _CONTENT_BYTES)


class CheckedFile:
    """What one reading of a file found: 40 bytes a line that may be sent, and the lines that may not."""

    def __init__(self, producer: str, now: datetime) -> None:
        self.invalid: list[InvalidLine] = []
        """The lines that can't be sent, in their order."""
        self._producer = producer
        self._now = now
        self._types: dict[str, int] = {}
        self._entries: list[bytes] = []
        """Of each line: event id, digest of the content, number, and which event type."""
        self._digest = sha256()

    @property
    def count(self) -> int:
        """How many lines can be sent."""
        return len(self._entries)

    @property
    def digest(self) -> str:
        """The SHA-256 of the whole file, in hex."""
        return self._digest.hexdigest()

    def read(self, file: IO[bytes]) -> None:
        """Check every line. Call it once."""
        for number, line in number_lines(_hashed(file, self._digest), self._producer, self._now):
            if isinstance(line, InvalidLine):
                self.invalid.append(line)
                continue
            event = _event_of(line)
            content = sha256(event.event_type.encode() + msgspec.msgpack.encode(event)).digest()[:_CONTENT_BYTES]
            type_index = self._types.setdefault(event.event_type, len(self._types))
            line_of = number.to_bytes(_NUMBER_BYTES, "big") + type_index.to_bytes(2, "big")
            self._entries.append(event.event_id.bytes + content + line_of)

    def hold_to(self, policy: StoredProducer | None) -> None:
        """Make lines invalid whose event type the producer may not send. Raises CheckFailed where it is disabled."""
        _refuse_disabled(policy)
        allowed = _allowed_types(policy)
        if allowed is None:
            return
        names = list(self._types)
        forbidden = {index for index, name in enumerate(names) if name not in allowed}
        kept: list[bytes] = []
        for entry in self._entries:
            index = int.from_bytes(entry[_ENTRY_TYPE], "big")
            if index in forbidden:
                self.invalid.append(_forbidden(int.from_bytes(entry[_ENTRY_NUMBER], "big"), names[index]))
            else:
                kept.append(entry)
        self._entries = kept
        self.invalid.sort(key=lambda line: line.number)

    def refuse_conflicts(self) -> None:
        """Raise CheckFailed where an id came twice, with other content."""
        self._entries.sort()
        for first, second in zip(self._entries, self._entries[1:], strict=False):
            if first[:_ID_BYTES] == second[:_ID_BYTES] and first[_ENTRY_CONTENT] != second[_ENTRY_CONTENT]:
                numbers = sorted(int.from_bytes(entry[_ENTRY_NUMBER], "big") for entry in (first, second))
                raise CheckFailed(
                    f"Lines {numbers[0]} and {numbers[1]} have the same id and other content.",
                    why=f"An id stands for one event, here {UUID(bytes=first[:_ID_BYTES])}. Nothing was sent.",
                    next_step="give one of them an id of its own",
                )

    def sendable(self, file: IO[bytes], policy: StoredProducer | None) -> Iterator[EventOfSender]:
        """Yield the events of the lines that can be sent, from a second reading.

        Raises CheckFailed at its end where the file is another one than the one that was checked.
        """
        digest = sha256()
        allowed = _allowed_types(policy)
        for _, line in number_lines(_hashed(file, digest), self._producer, self._now):
            if not isinstance(line, InvalidLine) and (allowed is None or _event_of(line).event_type in allowed):
                yield line
        if digest.digest() != self._digest.digest():
            raise CheckFailed(
                "The file changed while it was published.",
                why="It was checked before, and other lines than those may have been sent.",
                next_step="plant consume --from 10m    # shows what was sent; then publish the file again",
            )


def _hashed(file: IO[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    """Yield a file's lines and hash all of it; one that is far too long for an event is never held whole."""
    while line := file.readline(READ_MAX_BYTES):
        digest.update(line)
        part = line
        while len(part) == READ_MAX_BYTES and not part.endswith(b"\n"):
            line = _TOO_LONG
            part = file.readline(READ_MAX_BYTES)
            digest.update(part)
        yield line


def _event_of(line: EventOfSender) -> Event:
    return line.event.event if isinstance(line.event, ClockStamped) else line.event


def _refuse_disabled(producer: StoredProducer | None) -> None:
    if producer is not None and producer.disabled_at is not None:
        raise CheckFailed(
            f"{producer.name} may send nothing.",
            why=f"It was disabled at {producer.disabled_at:%Y-%m-%dT%H:%M:%SZ}. Nothing was sent.",
            next_step=f"plant producers enable {producer.name}",
        )


def _allowed_types(producer: StoredProducer | None) -> frozenset[str] | None:
    return None if producer is None or producer.event_types is None else frozenset(producer.event_types)


def _forbidden(number: int, event_type: str) -> InvalidLine:
    return InvalidLine(number, f"The producer may not send {event_type}.")
