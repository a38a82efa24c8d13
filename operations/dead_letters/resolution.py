"""What resolved a dead letter: the control record, and the operator action that published it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from audit.canonical import read_headers
from operations.dead_letters.dead_letter import DeadLetter
from operations.operator_actions import ACTIONS_PRODUCER
from projections.dead_letter_rows import DeadLetterRows
from schemas import codec
from schemas.control import RecordRedriven, RecordSkipped
from schemas.errors import Undecodable
from schemas.event_id import event_id
from schemas.events import OperationRecorded
from schemas.sender_headers import OPERATION_HEADER
from streams.topics import OPERATIONS_TOPIC


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """A control record that took effect on a dead letter. None: not known."""

    type: str
    offset: int
    appended_at: datetime
    event_id: UUID
    """Of the event that took effect instead, or of the skip."""
    repaired: bool
    """Whether it brought other bytes than the dead letter's own."""
    reason: str
    operation_id: UUID | None = None
    actor: str | None = None
    occurred_at: datetime | None = None


async def resolution_of(rows: DeadLetterRows, dead_letter: DeadLetter) -> Resolution | None:
    """Return what resolved a dead letter; None where nothing did."""
    if dead_letter.resolved_at is None:
        return None
    position = dead_letter.position
    (row,) = await rows.records(position.topic, position.partition, [dead_letter.resolved_at], whole=True)
    record = codec.decode_record(row.value)
    assert isinstance(record, RecordRedriven | RecordSkipped)
    operation = await _operation(rows, row.headers)
    return Resolution(
        type=record.event_type,
        offset=row.offset,
        appended_at=row.created_at,
        event_id=record.event_id,
        repaired=isinstance(record, RecordRedriven) and record.value is not None,
        reason=record.reason,
        operation_id=None if operation is None else operation.operation_id,
        actor=None if operation is None else operation.actor,
        occurred_at=None if operation is None else operation.occurred_at,
    )


async def _operation(rows: DeadLetterRows, headers: bytes) -> OperationRecorded | None:
    """Return the operator action that a record's headers name, where the log has it."""
    stated = dict(read_headers(headers)).get(OPERATION_HEADER)
    try:
        identity = event_id(ACTIONS_PRODUCER, (stated or b"").decode())
        event = codec.decode(await rows.operation_value(identity), OPERATIONS_TOPIC)
    except (UnicodeDecodeError, ValueError, Undecodable):
        return None
    return event if isinstance(event, OperationRecorded) else None
