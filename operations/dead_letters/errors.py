"""Why a record can't be redriven or skipped."""

from __future__ import annotations

from runtime.errors import CheckFailed
from runtime.process import escaped
from streams.record_position import RecordPosition
from streams.topics import RECORD_MAX_BYTES


def shown_position(position: RecordPosition) -> str:
    """Return a position as `plant dead-letters` takes it.

    >>> shown_position(RecordPosition("genesis.events", 3, 42))
    'genesis.events/3/42'
    """
    return f"{position.topic}/{position.partition}/{position.offset}"


class NoDeadLetter(CheckFailed):
    """The record is no dead letter."""

    def __init__(self, position: RecordPosition, disposition: str) -> None:
        super().__init__(
            f"{shown_position(position)} is no dead letter.",
            why=f"Its disposition is {disposition}: there is nothing to redrive or skip.",
            next_step="plant dead-letters list",
        )


class DeadLetterResolved(CheckFailed):
    """The dead letter was redriven or skipped before."""

    def __init__(self, position: RecordPosition, resolved_at: int) -> None:
        super().__init__(
            f"{shown_position(position)} was redriven or skipped before.",
            why=f"The control record at offset {resolved_at} took effect, and a record has one outcome.",
            next_step=f"plant dead-letters show {shown_position(position)}",
        )


class NotLogged(CheckFailed):
    """The log has no such record yet."""

    def __init__(self, position: RecordPosition, why: str) -> None:
        super().__init__(f"The log has no record at {shown_position(position)}.", why=why, next_step="plant status")


class NotRedrivable(CheckFailed):
    """No event can take effect in place of the record, since its key is no entity's id."""

    def __init__(self, position: RecordPosition, key: bytes | None) -> None:
        shown = "It has no key" if key is None else f"Its key is {key[:80]!r}"
        super().__init__(
            f"{shown_position(position)} can only be skipped.",
            why=f"{shown}: an event is about the entity whose id is the record's key.",
            next_step=f"plant dead-letters skip {shown_position(position)}",
        )


class PoisonUnchanged(CheckFailed):
    """The record's own bytes would be poison again."""

    def __init__(self, position: RecordPosition, reason: str) -> None:
        super().__init__(
            f"{shown_position(position)} would be poison again.",
            why=f"{escaped(reason)}.",
            next_step="plant dead-letters redrive --repaired FILE",
        )


class ControlTooLarge(CheckFailed):
    """The control record would be larger than Kafka takes."""

    def __init__(self, position: RecordPosition, size_bytes: int) -> None:
        super().__init__(
            f"The control record for {shown_position(position)} would be too large.",
            why=f"It would have {size_bytes} bytes; at most {RECORD_MAX_BYTES} are taken.",
            next_step=f"plant dead-letters show {shown_position(position)}",
        )


class BadRepair(CheckFailed):
    """A line of the file of repaired events can't be published."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(
            f"Line {number} can't be redriven.",
            why=f"{escaped(reason)}. Nothing was published.",
            next_step="mend the line, then run it again",
        )


class ControlIneffective(CheckFailed):
    """Control records were logged without effect."""
