"""A slice of history again: the events that took effect, as the log says, in the order in which they did.

Repeats, poison and control records are none. An event that waited, or that an operator has repaired, comes at the
offset of the control record that released it, with the bytes that took effect. So an entity's events come in the order
in which the read models have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from audit.canonical import read_headers
from projections.effective_events import EffectiveEvent, decode_effective, logged_events
from projections.session import Session
from schemas import codec
from schemas.events import Event
from streams.record_position import RecordPosition

PAGE_EVENTS: Final = 1_000
"""Events that are read at a time."""

REPLAYED_HEADER: Final = "plant_replayed"
"""The header of a replayed record: topic, partition and offset at which the event took effect."""

SOURCE: Final = "plant/replay"
"""The CloudEvents source of an event whose record names none."""


class ReplayFilter(msgspec.Struct, frozen=True):
    """Which events are replayed; None asks for all."""

    types: frozenset[str] | None = None
    entity_id: UUID | None = None

    def may_hold(self, value: bytes) -> bool:
        """Return whether a value can be an event of the entity: its id is in the bytes of each of its events."""
        return self.entity_id is None or self.entity_id.bytes in value

    def takes(self, event: Event) -> bool:
        """Return whether an event is replayed."""
        return (self.types is None or event.event_type in self.types) and self.entity_id in (None, event.entity_id)


class ReplayedEvent(NamedTuple):
    """An event, its bytes, where it took effect, and the headers of the record that brought it."""

    event: Event
    value: bytes
    position: RecordPosition
    headers: Sequence[tuple[str, bytes | None]]

    def record_headers(self) -> list[tuple[str, bytes | None]]:
        """Return the headers of its record on another topic: its own, and the one that says that it is a replay.

        Those of CloudEvents are made anew where they are of other bytes, which an operator has repaired.
        """
        own = [(name, value) for name, value in self.headers if name != REPLAYED_HEADER]
        named = dict(own)
        if named.get("ce_id") != codec.json_text(self.event.event_id):
            source = (named.get("ce_source") or SOURCE.encode()).decode("utf-8", "replace")
            own = [*codec.headers(self.event, source), *(each for each in own if not each[0].startswith("ce_"))]
        return [*own, (REPLAYED_HEADER, str(self.position).encode())]


class ReplayedPage(NamedTuple):
    """Events that were read, and the offset to go on from."""

    events: list[ReplayedEvent]
    next_offset: int


def replayed_pages(
    session: Session, topic: str, partition: int, offsets: tuple[int, int], wanted: ReplayFilter
) -> Iterator[ReplayedPage]:
    """Yield the events that took effect from `offsets[0]` on and below `offsets[1]`, page by page.

    The log's checkpoint has to be at the second offset or above. Raises SchemaNewer, AppliedEventUnreadable.
    """
    next_offset, until = offsets
    while next_offset < until:
        found = logged_events(session, topic, partition, (next_offset, until), PAGE_EVENTS)
        next_offset = found.next_offset
        read = (_read(topic, partition, each) for each in found.events if wanted.may_hold(each.value))
        yield ReplayedPage([each for each in read if wanted.takes(each.event)], next_offset)


def _read(topic: str, partition: int, effective: EffectiveEvent) -> ReplayedEvent:
    event = decode_effective(topic, partition, effective)
    position = RecordPosition(topic, partition, effective.effective_offset)
    return ReplayedEvent(event, effective.value, position, read_headers(effective.headers))
