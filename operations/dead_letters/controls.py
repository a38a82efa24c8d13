"""The control records that redrive and skip dead letters: which one each gets, and which can't get one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple
from uuid import uuid5

from operations.control_headers import control_headers
from operations.dead_letters.dead_letter import DeadLetter
from operations.dead_letters.errors import ControlTooLarge, NotRedrivable, PoisonUnchanged
from operations.operator_actions import OperatorAction
from projections.repeats import ID_REUSED
from runtime.errors import CheckFailed
from schemas import codec
from schemas.control import ControlRecord, RecordRedriven, RecordSkipped
from schemas.errors import Undecodable
from schemas.event_id import NAMESPACE_PLANT
from schemas.events import Event
from schemas.sender_headers import Header
from streams.producer import record_size_bytes
from streams.record_position import RecordPosition
from streams.topics import RECORD_MAX_BYTES, logical_topic


class Control(NamedTuple):
    """A control record for the record at a position, which has this key."""

    position: RecordPosition
    key: bytes | None
    record: RecordRedriven | RecordSkipped
    reason: str
    """Why the record is poison."""


Controls = AsyncIterator[Control | CheckFailed]
"""What is to be published, and why something is left out, by topic, partition and offset."""


def skip_of(dead_letter: DeadLetter, reason: str) -> Control:
    r"""Return the control record that skips a dead letter.

    Its id is UUIDv5(NAMESPACE_PLANT, "plant.record.skipped\n" + topic/partition + "\n" + offset).
    """
    position = dead_letter.position
    name = f"{RecordSkipped.event_type}\n{position.topic}/{position.partition}\n{position.offset}"
    record = RecordSkipped(event_id=uuid5(NAMESPACE_PLANT, name), poison_offset=position.offset, reason=reason)
    return _with_room(Control(position, dead_letter.row.key, record, dead_letter.row.reason or ""))


def as_is_of(dead_letter: DeadLetter, reason: str) -> Control:
    """Return the control record that redrives a dead letter's own bytes; its whole value must have been read.

    Raises NotRedrivable, and PoisonUnchanged where they are no valid event of its key's entity.
    """
    position, row = dead_letter.position, dead_letter.row
    if dead_letter.entity_id is None:
        raise NotRedrivable(position, row.key)
    if row.reason == ID_REUSED:
        raise PoisonUnchanged(position, ID_REUSED)
    try:
        event = codec.decode(row.value, logical_topic(row.topic))
    except Undecodable as error:
        raise PoisonUnchanged(position, error.reason) from error
    if codec.key(event) != row.key:
        raise PoisonUnchanged(position, f"the event is about {event.entity_id}, and its key is another")
    record = RecordRedriven(event_id=event.event_id, poison_offset=position.offset, value=None, reason=reason)
    return _with_room(Control(position, row.key, record, row.reason or ""))


def repair_of(dead_letter: DeadLetter, event: Event, reason: str) -> Control:
    """Return the control record that redrives a dead letter as another event, which has been checked.

    Raises NotRedrivable.
    """
    if dead_letter.entity_id is None:
        raise NotRedrivable(dead_letter.position, dead_letter.row.key)
    return _with_room(repaired(dead_letter.position, event, reason, dead_letter.row.reason or ""))


def repaired(position: RecordPosition, event: Event, reason: str, poison_reason: str = "") -> Control:
    """Return the control record that redrives the record at a position as an event of its key's entity."""
    record = RecordRedriven(
        event_id=event.event_id, poison_offset=position.offset, value=codec.encode(event), reason=reason
    )
    return Control(position, codec.key(event), record, poison_reason)


def content_of(record: ControlRecord, action: OperatorAction) -> tuple[bytes, list[Header]]:
    """Return value and headers of a control record that an operator action publishes."""
    return codec.encode(record), control_headers(record, action)


def _with_room(control: Control) -> Control:
    """Return a control record that Kafka takes. Raises ControlTooLarge; all are asked before one is published."""
    size_bytes = record_size_bytes(control.key, *content_of(control.record, _SOME_ACTION))
    if size_bytes > RECORD_MAX_BYTES:
        raise ControlTooLarge(control.position, size_bytes)
    return control


_SOME_ACTION: Final = OperatorAction(action="", target="", reason="")
"""The headers of every action have the same length."""
