"""One event type in several versions, some of which may not follow each other."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec

from schemas.entity_states import NO_NUL
from schemas.events import Event
from schemas.registry import Registry, Version, next_version

Text = Annotated[str, msgspec.Meta(pattern=NO_NUL)]


class ThingMade(Event, frozen=True, kw_only=True):
    """A thing was made."""

    event_type: ClassVar[str] = "test.thing.made"
    entity_field: ClassVar[str] = "thing_id"
    thing_id: UUID
    occurred_at: datetime
    name: Text


def renamed(struct: type[Event]) -> type[Event]:
    """The struct as the next version of ThingMade."""
    struct.__name__ = "ThingMade"
    return struct


@renamed
class WithNote(Event, frozen=True, kw_only=True):
    """A thing was made, as we say now."""

    event_type: ClassVar[str] = "test.thing.made"
    entity_field: ClassVar[str] = "thing_id"
    note: Text | None = None
    thing_id: UUID
    occurred_at: datetime
    name: Text


@renamed
class WithScore(Event, frozen=True, kw_only=True):
    """A thing was made and scored."""

    event_type: ClassVar[str] = "test.thing.made"
    entity_field: ClassVar[str] = "thing_id"
    thing_id: UUID
    occurred_at: datetime
    name: Text
    score: int


@renamed
class Described(Event, frozen=True, kw_only=True):
    """A thing was made: only the description is new."""

    event_type: ClassVar[str] = "test.thing.made"
    entity_field: ClassVar[str] = "thing_id"
    thing_id: UUID
    occurred_at: datetime
    name: Text


@renamed
class Mapped(Event, frozen=True, kw_only=True):
    """A thing was made, with a limit that columns can't check."""

    event_type: ClassVar[str] = "test.thing.made"
    entity_field: ClassVar[str] = "thing_id"
    thing_id: UUID
    occurred_at: datetime
    name: str


def named(*, with_note: bool = True, **limits: int) -> type[Event]:
    """Return ThingMade with these limits on its name, and a note of at most 5 characters."""
    name = Annotated[str, msgspec.Meta(pattern=NO_NUL, **limits)]  # type: ignore[arg-type]  # lengths are numbers
    note = Annotated[str, msgspec.Meta(pattern=NO_NUL, max_length=5)]
    fields: list[tuple[Any, ...]] = [("thing_id", UUID), ("occurred_at", datetime), ("name", name)]
    if with_note:
        fields.append(("note", note | None, None))
    space = {"__doc__": "A thing was made.", "__module__": __name__}
    struct = msgspec.defstruct("ThingMade", fields, bases=(Event,), namespace=space, frozen=True, kw_only=True)
    struct.event_type = "test.thing.made"  # type: ignore[attr-defined]
    struct.entity_field = "thing_id"  # type: ignore[attr-defined]
    return struct  # type: ignore[return-value]


FIRST = next_version(Registry([], {}), ThingMade)


def registered(*versions: Version, event: type[Event] = ThingMade) -> Registry:
    """A registry of these versions in which `event` is today's struct."""
    return Registry(versions, {event.event_type: event})
