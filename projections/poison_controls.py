"""What the bytes of a batch say about poison: which records may park an entity, and which control records name one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from schemas import codec
from schemas.batch_decoder import DecodedEvents, RejectedValue
from schemas.control import CONTROL_TYPES, RecordRedriven, RecordSkipped
from schemas.errors import Undecodable
from streams.batch import EventBatch

_ENTITY_KEY: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The key of an entity's events: no other text can have been one."""


class PoisonControl(NamedTuple):
    """A control record about a poison record."""

    event_id: bytes
    poison_offset: int
    redrives: bool
    """False: it skips the poison record."""
    value: bytes | None = None
    """The repaired bytes of a redriven record; None: its own."""


def parked_ids(batch: EventBatch, rejected: Iterable[RejectedValue]) -> dict[int, bytes]:
    """Return the rejected rows that may have been an event of the entity whose id their key is, with that id."""
    return {
        value.row: bytes.fromhex(key.replace(b"-", b"").decode())
        for value in rejected
        if (key := batch.keys[value.row]) is not None
        and _ENTITY_KEY.fullmatch(key)
        and not _has_control_schema(batch.values[value.row])
    }


def _has_control_schema(value: bytes | None) -> bool:
    try:
        return codec.registered(value).event in CONTROL_TYPES.values()
    except Undecodable:
        return False


def poison_controls(controls: Iterable[DecodedEvents]) -> dict[int, PoisonControl]:
    """Return the control records of a batch that are about poison records, by row, ascending."""
    return dict(sorted(pair for group in controls for pair in _poison_controls(group)))


def _poison_controls(group: DecodedEvents) -> Iterator[tuple[int, PoisonControl]]:
    """Yield the control records of one type that are about poison records, by row."""
    if group.event_type not in (RecordRedriven.event_type, RecordSkipped.event_type):
        return
    redrives = group.event_type == RecordRedriven.event_type
    values = group.frame["value"].to_list() if redrives else [None] * len(group.rows)
    ids, offsets = group.frame["event_id"].to_list(), group.frame["poison_offset"].to_list()
    for row, event_id, offset, value in zip(group.rows, ids, offsets, values, strict=True):
        yield int(row), PoisonControl(event_id, offset, redrives, value)
