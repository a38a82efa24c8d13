"""A partition's records with poison and control records among them, and in plain Python what becomes of each.

The rules are those of docs/explanation/exactly-once.md, record by record; nothing is shared with the code under test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import msgspec

from schemas import codec
from schemas.events import AgentRated, Event
from tests.support.batches import Record, record
from tests.support.poison_records import UNREADABLE, key_of, over_a_limit, redrive, redrive_to_newer, skip
from tests.support.read_model_folds import Applied

KINDS = {
    "event": 14, "repeat": 2, "forged": 1, "unreadable": 2, "over a limit": 1, "keyless": 1, "misplaced": 1,
    "redrive": 5, "skip": 2,
}  # fmt: skip


class Poison(NamedTuple):
    """A poison record: its key, the event that its bytes hold, and whether it parks."""

    key: bytes | None
    event: Event | None
    parks: bool


@dataclass
class Slot:
    """A record that waits: a poison record, or an event."""

    offset: int
    event: Event | None


class Row(NamedTuple):
    """What the log says of a record."""

    disposition: str
    control_offset: int | None = None
    event_id: UUID | None = None


class ParkedStream:
    """One partition. `next_event` makes an event of an entity of this partition."""

    def __init__(self, partition: int, chance: random.Random, next_event: Callable[[], Event]) -> None:
        self._partition = partition
        self._chance = chance
        self._next_event = next_event
        self._known: dict[UUID, Event] = {}
        self._slots: dict[bytes, list[Slot]] = {}
        self._poison: dict[int, Poison] = {}
        self._resolved: set[int] = set()
        self.rows: list[Row] = []
        self.applied: list[Applied] = []
        """The events that have taken effect, in order."""

    def take(self) -> Record:
        """Return the next record, and judge it."""
        kinds = KINDS if self._known and self._poison else {"event": 3, "unreadable": 1}
        (kind,) = self._chance.choices(list(kinds), list(kinds.values()))
        match kind:
            case "event":
                return self._event(self._next_event())
            case "repeat":
                return self._event(self._chance.choice(list(self._known.values())))
            case "forged":
                return self._event(self._forged())
            case "unreadable":
                key = key_of(self._next_event().entity_id)
                self._note_poison(Poison(key, None, parks=True))
                return key, self._unreadable()
            case "over a limit":
                return self._over_a_limit()
            case "keyless":
                event = self._next_event()
                self._note_poison(Poison(None, event, parks=False))
                return None, codec.encode(event)
            case "misplaced":
                event, key = self._next_event(), key_of(self._next_event().entity_id)
                if key == codec.key(event):
                    return self._event(event)
                self._note_poison(Poison(key, event, parks=False))
                return key, codec.encode(event)
        return self._control(skips=kind == "skip")

    def skip_waiting(self) -> Iterator[Record]:
        """Give a skip of each poison record that waits for a control record, in the order of offsets, and judge it."""
        for offset in sorted(self._poison.keys() - self._resolved):
            yield self._skip(offset, self._poison[offset].key)

    @property
    def queues(self) -> dict[bytes, list[tuple[int, UUID | None]]]:
        """What waits, in order: the offset of its place, and the event's id; None for a poison record."""
        return {
            key: [(slot.offset, None if slot.event is None else slot.event.event_id) for slot in slots]
            for key, slots in self._slots.items()
        }

    def _unreadable(self) -> bytes | None:
        """No event, an event cut short, one with a byte too many, or nothing at all."""
        value = codec.encode(self._next_event())
        return self._chance.choice([UNREADABLE, value[:-1], value + b"\0", b"", None])

    def _over_a_limit(self) -> Record:
        event = self._next_event()
        rated = AgentRated(
            event_id=event.event_id, agent_id=event.entity_id, occurred_at=event.occurred_at,
            rater_id=event.entity_id, rating=5,
        )  # fmt: skip
        self._note_poison(Poison(codec.key(rated), None, parks=True))
        return over_a_limit(rated, rating=6)

    def _forged(self) -> Event:
        event = self._chance.choice(list(self._known.values()))
        return msgspec.structs.replace(event, occurred_at=self._next_event().occurred_at)

    def _event(self, event: Event) -> Record:
        key, offset = codec.key(event), len(self.rows)
        is_new = event.event_id not in self._known
        first = self._known.setdefault(event.event_id, event)
        if is_new:
            waits = key in self._slots
            self.rows.append(Row("parked" if waits else "applied", None, event.event_id))
            self._slots.setdefault(key, []).append(Slot(offset, event))
            self._release(key)
        elif first == event:
            self.rows.append(Row("repeat", None, event.event_id))
        else:
            self._poison[offset] = Poison(key, event, parks=False)
            self.rows.append(Row("poison", None, event.event_id))
        return record(event)

    def _note_poison(self, poison: Poison) -> None:
        offset = len(self.rows)
        self._poison[offset] = poison
        if poison.parks:
            assert poison.key is not None
            self._slots.setdefault(poison.key, []).append(Slot(offset, None))
        self.rows.append(Row("poison"))

    def _control(self, *, skips: bool) -> Record:
        """Name a poison record that waits, most of the time."""
        waiting = [offset for offset in self._poison if offset not in self._resolved]
        offset = len(self.rows)
        named = self._chance.choice(waiting) if waiting and self._chance.random() < 0.8 else offset // 2
        key = self._poison[named].key if named in self._poison else key_of(self._next_event().entity_id)
        if self._chance.random() < 0.1:
            key = key_of(self._next_event().entity_id)
        if skips:
            return self._skip(named, key)
        if not self._waits(named, key) and self._chance.random() < 0.2:
            self.rows.append(Row("control"))
            return redrive_to_newer(key, named)
        event = self._repaired(key)
        made = event if event is not None else self._as_it_is(named)
        event_id = made.event_id if made is not None and self._chance.random() < 0.9 else UUID(int=offset)
        self.rows.append(self._redriven(named, key, made, event_id, offset))
        return redrive(key, named, event, event_id)

    def _skip(self, named: int, key: bytes | None) -> Record:
        _, value = skip(key, named)
        event_id = codec.decode_record(value).event_id
        works = self._waits(named, key)
        if works:
            self._resolve(named, key, None)
        self.rows.append(Row("control", named if works else None, event_id if works else None))
        return key, value

    def _repaired(self, key: bytes | None) -> Event | None:
        """An event to redrive: a new one, a known one, one whose id is another's; None: the record's own bytes."""
        chosen = self._chance.random()
        if chosen < 0.15:
            return None
        if chosen < 0.3:
            known = [event for event in self._known.values() if codec.key(event) == key]
            return self._chance.choice(known) if known else self._forged()
        if chosen < 0.4:
            return self._forged()
        while codec.key(event := self._next_event()) != key and self._chance.random() < 0.97:
            pass
        return event

    def _as_it_is(self, named: int) -> Event | None:
        return self._poison[named].event if named in self._poison else None

    def _waits(self, named: int, key: bytes | None) -> bool:
        return named in self._poison and self._poison[named].key == key and named not in self._resolved

    def _redriven(self, named: int, key: bytes | None, event: Event | None, event_id: UUID, offset: int) -> Row:
        valid = event is not None and codec.key(event) == key and event.event_id == event_id
        if key is None or event is None or not valid or not self._waits(named, key):
            return Row("control")
        is_new = event_id not in self._known
        if self._known.setdefault(event_id, event) != event:
            return Row("control")
        if is_new:
            parks = self._poison[named].parks
            self._resolve(named, key, event if parks else None)
            if not parks:
                self._slots.setdefault(key, []).append(Slot(offset, event))
                self._release(key)
            return Row("control", named, event_id)
        later = [slot for slot in self._slots.get(key, []) if slot.event == event and slot.offset > named]
        if later and self._poison[named].parks:
            self._slots[key].remove(later[0])
            self._resolve(named, key, event)
        else:
            self._resolve(named, key, None)
        return Row("control", named)

    def _resolve(self, named: int, key: bytes | None, event: Event | None) -> None:
        self._resolved.add(named)
        if self._poison[named].parks:
            assert key is not None
            (slot,) = (each for each in self._slots[key] if each.offset == named)
            slot.event = event
            if event is None:
                self._slots[key].remove(slot)
            self._release(key)

    def _release(self, key: bytes) -> None:
        slots = self._slots[key]
        while slots and (event := slots[0].event) is not None:
            self.applied.append(Applied(self._partition, slots.pop(0).offset, event))
        if not slots:
            del self._slots[key]
