"""A dead letter as operators see it: its row of the log, decoded as far as that goes, and what became of it."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any, Final, Literal
from uuid import UUID, uuid5

import msgspec

from audit.canonical import read_headers
from projections.dead_letter_rows import LoggedRow, ParkedCount
from projections.repeats import ID_REUSED
from runtime.process import shown_bytes
from schemas import codec
from schemas.control import RecordRedriven
from schemas.entity_states import Time
from schemas.errors import Undecodable
from schemas.event_id import NAMESPACE_PLANT
from schemas.events import EVENT_TYPES
from streams.record_position import RecordPosition
from streams.topics import logical_topic

State = Literal["waiting", "resolved"]

SHOWN_BYTES: Final = 1024
"""Bytes of a value or a key that a list shows in hex."""

_ID_FIELDS: Final = ("event_id", "occurred_at")


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A poison record. `resolved_at` is the offset of the control record that took effect on it; None: it waits."""

    row: LoggedRow
    resolved_at: int | None = None
    parked: ParkedCount = ParkedCount()

    @property
    def position(self) -> RecordPosition:
        """Where the record stands."""
        return RecordPosition(self.row.topic, self.row.partition, self.row.offset)

    @property
    def state(self) -> State:
        """Whether it waits for an operator."""
        return "waiting" if self.resolved_at is None else "resolved"

    @cached_property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The record's headers, in order."""
        return read_headers(self.row.headers)

    @property
    def entity_id(self) -> UUID | None:
        """The entity that an event with its key is about; None where the key is no entity's id."""
        return entity_of(self.row.key)

    @property
    def decoded_type(self) -> str | None:
        """The type that the schema of its value is of; None where that is not known."""
        try:
            return codec.registered(self.row.value).event.event_type
        except Undecodable:
            return self.row.event_type

    @property
    def event_type(self) -> str | None:
        """The type that its header names, else that of its value."""
        return self._text("ce_type") or self.decoded_type

    @property
    def event_id(self) -> UUID:
        """The id of the event that a repair of it is by default.

        It is the header's. An id that was used before for another event can't take effect, and a record may have none:
        then it is UUIDv5 of the record's position.
        """
        stated = None if self.row.reason == ID_REUSED else _uuid(self._text("ce_id"))
        return stated or repaired_id(self.position)

    @property
    def occurred_at(self) -> datetime:
        """The time that a repair of it has by default: the header's, else that of its appending."""
        try:
            return msgspec.convert(self._text("ce_time"), Time)
        except msgspec.ValidationError:
            return self.row.created_at

    def fields(self) -> dict[str, Any] | None:
        """Return the value's fields for JSON, whatever limits they break; None where its bytes are of no schema.

        The whole value must have been read.
        """
        try:
            event, fields = codec.read_fields(self.row.value, logical_topic(self.row.topic))
        except Undecodable:
            return None
        return {name: _for_json(value) for name, value in fields.items()} if event.event_type in EVENT_TYPES else None

    def event_line(self) -> dict[str, Any]:
        """Return the event as `--repaired` reads it; `data` is null where the value can't be decoded."""
        fields, time = self.fields(), msgspec.to_builtins(self.occurred_at)
        if fields is None:
            return {"type": self.event_type, "id": str(self.event_id), "timestamp": time, "data": None}
        reused = self.row.reason == ID_REUSED
        data = {name: value for name, value in fields.items() if name not in _ID_FIELDS and value is not None}
        return {
            "type": self.decoded_type,
            "id": str(self.event_id) if reused or self._text("ce_id") else fields["event_id"],
            "timestamp": msgspec.to_builtins(fields["occurred_at"]),
            "data": data,
        }

    def line(self, *, hex_max_bytes: int = SHOWN_BYTES) -> dict[str, Any]:
        """Return everything as JSON takes it: a line of `plant dead-letters list`, and, repaired, of `--repaired`."""
        row = self.row
        line: dict[str, Any] = {
            "topic": row.topic,
            "partition": row.partition,
            "offset": row.offset,
            "appended_at": row.created_at,
            "reason": row.reason,
            "state": self.state,
            "entity": self.entity_id,
            "parked": self.parked.events,
            "parked_at_least": self.parked.at_least,
            "resolved_at": self.resolved_at,
            "event": self.event_line(),
            "key": shown_bytes(row.key),
            "headers": [(_name(name), shown_bytes(value)) for name, value in self.headers],
            "value_bytes": row.value_bytes,
        }
        if line["event"]["data"] is None and row.value is not None:
            line["value_hex"] = row.value[:hex_max_bytes].hex()
        return line

    def _text(self, header: str) -> str | None:
        """Return the text of the first header of a name."""
        value = next((value for name, value in self.headers if name == header), None)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return None


def entity_of(key: bytes | None) -> UUID | None:
    """Return the entity whose id a key is; None for any other key.

    >>> entity_of(b"72d76358-5032-530d-b5a7-ee89ea19f5a4")
    UUID('72d76358-5032-530d-b5a7-ee89ea19f5a4')
    >>> entity_of(b"72D76358-5032-530D-B5A7-EE89EA19F5A4")
    """
    entity = _uuid(None if key is None else key.decode("ascii", "replace"))
    return entity if entity is not None and str(entity).encode() == key else None


def repaired_id(position: RecordPosition) -> UUID:
    r"""Return UUIDv5(NAMESPACE_PLANT, "plant.record.redriven\n" + topic/partition + "\n" + offset).

    >>> repaired_id(RecordPosition("genesis.events", 3, 42))
    UUID('c7509763-bcd9-5de2-8029-cd3a1b9c2b6f')
    """
    name = f"{RecordRedriven.event_type}\n{position.topic}/{position.partition}\n{position.offset}"
    return uuid5(NAMESPACE_PLANT, name)


def _name(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _uuid(text: str | None) -> UUID | None:
    try:
        return None if text is None else UUID(text)
    except ValueError:
        return None


def _for_json(value: object) -> object:
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if len(value) == 16 else value.hex()
    if isinstance(value, dict):
        return {name: _for_json(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_for_json(each) for each in value]
    return value
