"""Seeded records at the edges of what the schemas allow, and beyond them: whatever a partition may hold."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from schemas import codec
from schemas.control import chain_version_raised
from schemas.events import NIL_ID, AgentRated, Event
from tests.support.batches import TOPIC, Record, record
from tests.support.log_rows import operation
from tests.support.mixed_events import EXTREMES, MixedEvents
from tests.support.poison_records import over_a_limit, redrive, skip

LETTERS: Final = ("x", "é", "日", "🦀", "\U0010ffff")
TEXTS: Final = (
    " ", "NULL", '"', "'", "\\", "\\N", "\\.", "{}", "{NULL}", ",", "\n", "\t\r\n", "\x01\x7f", "\u2028", "\ufeff",
    "e\u0301", "ß",
    "İ", "ǅ", "\u202e", "$1", "$$", "/*", "--", ";", "%s", "{0}", "E'\\''", "a-b/c.d@example.test?e=f#g",
    "1e308",
    "-0.0", "0x00", "v1.2.3", "<b>bold</b>", "&amp;", *(letter * 200 for letter in LETTERS),
)  # fmt: skip
DESCRIPTIONS: Final = (
    "", "x" * 2_046, "x" * 2_047, "x" * 10_000, "🦀 " * 5_000, " ".join(str(number) for number in range(2_000)),
)  # fmt: skip

KINDS: Final = {
    "event": 40, "again": 4, "forged": 2, "changed bytes": 10, "cut": 2, "nothing": 2, "foreign": 2, "another's": 2,
    "odd key": 3, "over a limit": 4, "another topic's": 1, "redrive": 5, "skip": 4, "raised": 1,
}  # fmt: skip
ODD_KEYS: Final = (None, b"", b"key", b"\x00\xff" * 40, b"x" * 36, b"-" * 36)


class EdgeEvents(MixedEvents):
    """Events whose texts, times and lists are as odd as their limits allow."""

    def _text(self) -> str:
        return self._chance.choice(TEXTS)

    def _description(self) -> str:
        return self._chance.choice((*TEXTS, *DESCRIPTIONS))

    def _available_from(self) -> datetime | None:
        return self._chance.choice((None, *EXTREMES))

    def _some_ids(self) -> tuple[UUID, ...]:
        count = self._chance.choice((0, 1, 2, 3, 3, 120))
        return tuple(self._chance.choice((self._id(), NIL_ID, UUID(int=number))) for number in range(count))


class EdgeRecords:
    """The records of a partition, one after another."""

    def __init__(self, seed: int, partition: int, partitions: int) -> None:
        self._events = EdgeEvents(seed << 8 | partition)
        self._chance = self._events._chance
        self._partition, self._partitions = partition, partitions
        self._made: list[Record] = []
        self._odd: list[int] = []

    def take(self, count: int) -> list[Record]:
        """Return the next records."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Record:
        (kind,) = self._chance.choices(list(KINDS), list(KINDS.values()))
        made = self._record(kind if self._made else "event")
        if kind not in ("event", "again", "redrive", "skip", "raised"):
            self._odd.append(len(self._made))
        self._made.append(made)
        return made

    def _record(self, kind: str) -> Record:
        event = self._event()
        key, value = record(event)
        assert value is not None
        match kind:
            case "again":
                return self._chance.choice(self._made)
            case "forged":
                return record(msgspec.structs.replace(event, event_id=UUID(int=self._chance.randrange(1 << 8))))
            case "changed bytes":
                return key, self._changed(value)
            case "cut":
                return key, self._chance.choice((value[:-1], value[:20], value[:5], value + b"\0"))
            case "nothing":
                return key, self._chance.choice((None, b"", b"\0", b"\0\0\0\0", value[:4]))
            case "foreign":
                return key, self._chance.choice((b"no event", b"\1" + value[1:], codec.WIRE_PREFIX.pack(0, -1)))
            case "another's":
                return codec.key(self._event()), value
            case "odd key":
                return self._chance.choice((*ODD_KEYS, (key or b"").upper(), (key or b"")[:-1])), value
            case "over a limit":
                return self._over_a_limit(event)
            case "another topic's":
                return record(operation(1))
            case "redrive":
                named, at = self._named()
                return self._chance.choice((
                    redrive(named, at, event), redrive(codec.key(event), at, event),
                    redrive(named, at, None, event.event_id),
                ))  # fmt: skip
            case "skip":
                return skip(*self._named())
            case "raised":
                return self._chance.choice((None, key)), codec.encode(chain_version_raised(TOPIC, self._partition))
        return key, value

    def _event(self) -> Event:
        """An event of an entity of this partition."""
        while (event := self._events.take(1)[0]).entity_id.int % self._partitions != self._partition:
            pass
        return event

    def _named(self) -> tuple[bytes | None, int]:
        """A record that is odd, in most cases, and its key."""
        offset = self._chance.choice(self._odd or [0]) if self._chance.random() < 0.9 else self._chance.randrange(99)
        key = self._made[offset][0] if offset < len(self._made) else None
        return key, offset

    def _changed(self, value: bytes) -> bytes:
        """The value with some other bytes behind those that name its schema."""
        changed = bytearray(value)
        for _ in range(self._chance.choice((1, 1, 2, 3))):
            at = self._chance.randrange(codec.WIRE_PREFIX.size, len(changed))
            odd = self._chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, 0xED, self._chance.randrange(256)))
            match self._chance.randrange(3):
                case 0:
                    changed[at] = odd
                case 1:
                    changed.insert(at, odd)
                case _ if len(changed) > codec.WIRE_PREFIX.size + 1:
                    del changed[at]
        return bytes(changed)

    def _over_a_limit(self, event: Event) -> Record:
        rated = AgentRated(
            event_id=event.event_id, agent_id=event.entity_id, occurred_at=event.occurred_at, rater_id=NIL_ID, rating=1
        )
        if self._chance.random() < 0.5 or not hasattr(event, "name"):
            return over_a_limit(rated, rating=self._chance.choice((-(2**63), -1, 0, 6, 2**63 - 1)))
        name = self._chance.choice(("", "\0", "a\0b", *(letter * 201 for letter in LETTERS)))
        return over_a_limit(event, name=name)
