"""Poison records, and control records about them, as (key, value)."""

from __future__ import annotations

from uuid import UUID, uuid5

from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from schemas.event_id import NAMESPACE_PLANT
from schemas.events import Event
from tests.support.batches import Record
from tests.support.made_events import Plain, unchecked_value

UNREADABLE = b"no event"

OF_A_LATER_RELEASE = codec.WIRE_PREFIX.pack(0, 99) + b"of a later release"
"""A value whose schema id no release has taken yet, and a later one may."""


def key_of(entity_id: UUID) -> bytes:
    return str(entity_id).encode()


def unreadable(entity_id: UUID) -> Record:
    """Bytes that are no event, under an entity's key."""
    return key_of(entity_id), UNREADABLE


def over_a_limit(event: Event, **fields: object) -> Record:
    """An event whose fields a writer without Plant's limits has written."""
    plain: Plain = {name: getattr(event, name) for name in event.__struct_fields__} | fields
    return codec.key(event), unchecked_value(type(event), plain)


def redrive(key: bytes | None, poison_offset: int, event: Event | None = None, event_id: UUID | None = None) -> Record:
    """Redrive a poison record as an event, or as it is where there is none: then with the id that it has."""
    identity = event.event_id if event is not None and event_id is None else event_id
    assert identity is not None
    value = None if event is None else codec.encode(event)
    control = RecordRedriven(event_id=identity, poison_offset=poison_offset, value=value, reason="a test")
    return key, codec.encode(control)


def redrive_to_newer(key: bytes | None, poison_offset: int) -> Record:
    """Redrive a poison record as an event whose schema a later release of Plant may know."""
    identity = uuid5(NAMESPACE_PLANT, f"redrive {key!r} {poison_offset}")
    control = RecordRedriven(event_id=identity, poison_offset=poison_offset, value=OF_A_LATER_RELEASE, reason="a test")
    return key, codec.encode(control)


def skip(key: bytes | None, poison_offset: int) -> Record:
    """Skip a poison record."""
    identity = uuid5(NAMESPACE_PLANT, f"skip {key!r} {poison_offset}")
    return key, codec.encode(RecordSkipped(event_id=identity, poison_offset=poison_offset, reason="a test"))
