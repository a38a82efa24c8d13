"""The checks of a file before its events are published: its producer's policy, and ids that come twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Final
from uuid import UUID

import msgspec

from ingress.producers import StoredProducer
from operations.event_lines import InvalidLine
from runtime.errors import CheckFailed
from schemas.clock_fields import ClockStamped
from schemas.sender_headers import EventOfSender

_ID_BYTES: Final = 16
_CONTENT_BYTES: Final = 16


class EventIds:
    """The ids of a file's events, with what each one stands for: 40 bytes a line."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []

    def add(self, line: EventOfSender, number: int) -> None:
        """Remember the event of a line."""
        event = line.event.event if isinstance(line.event, ClockStamped) else line.event
        content = sha256(event.event_type.encode() + msgspec.msgpack.encode(event)).digest()[:_CONTENT_BYTES]
        self._entries.append(event.event_id.bytes + content + number.to_bytes(8, "big"))

    def refuse_conflicts(self) -> None:
        """Raise CheckFailed where an id came twice, with other content."""
        self._entries.sort()
        for first, second in zip(self._entries, self._entries[1:], strict=False):
            same_id = first[:_ID_BYTES] == second[:_ID_BYTES]
            if same_id and first[_ID_BYTES:-8] != second[_ID_BYTES:-8]:
                numbers = sorted(int.from_bytes(entry[-8:], "big") for entry in (first, second))
                raise CheckFailed(
                    f"Lines {numbers[0]} and {numbers[1]} have the same id and other content.",
                    why=f"An id stands for one event, here {UUID(bytes=first[:_ID_BYTES])}. Nothing was sent.",
                    next_step="give one of them an id of its own",
                )


def refuse_disabled(producer: StoredProducer | None) -> None:
    """Raise CheckFailed where the producer may send nothing."""
    if producer is not None and producer.disabled_at is not None:
        raise CheckFailed(
            f"{producer.name} may send nothing.",
            why=f"It was disabled at {producer.disabled_at:%Y-%m-%dT%H:%M:%SZ}. Nothing was sent.",
            next_step=f"plant producers enable {producer.name}",
        )


def permitted(
    lines: Iterable[tuple[int, EventOfSender | InvalidLine]], producer: StoredProducer | None
) -> Iterator[tuple[int, EventOfSender | InvalidLine]]:
    """Yield each line with its number; an event of a type that the producer may not send is an invalid line."""
    allowed = None if producer is None or producer.event_types is None else frozenset(producer.event_types)
    for number, line in lines:
        if allowed is None or isinstance(line, InvalidLine):
            yield number, line
            continue
        event = line.event.event if isinstance(line.event, ClockStamped) else line.event
        if event.event_type in allowed:
            yield number, line
        else:
            yield number, InvalidLine(number, f"The producer may not send {event.event_type}.")
