"""The events of a partition in the order in which they take effect, with their bytes.

An applied record takes effect at its own offset. An event that has waited, or that an operator has repaired, does at
the offset of the control record that releases it, together with others: `rank` counts those of one offset. Repeats and
poison records never take effect.

Who follows the log asks it about records that the log's checkpoint has passed (`projections/log_checkpoints.py`): what
it says of them is final.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from projections.parking_log import ParkingLog, ReleasedEvent, redriven_of
from projections.session import Session, sql_literal
from schemas import codec
from schemas.errors import Undecodable, UnknownSchema
from schemas.events import Event
from streams.batch import EventBatch
from streams.errors import AppliedEventUnreadable, SchemaNewer
from streams.topics import logical_topic

# The index of each range on all that is not applied begins with the disposition.
_UNAPPLIED: Final = """
SELECT "offset", control_offset IS NOT NULL AS has_effect FROM log_records
WHERE topic = {topic} AND partition = {partition} AND "offset" >= {first} AND "offset" < {until}
  AND disposition IN ('repeat', 'poison', 'parked', 'control') AND disposition <> 'applied'
"""
_APPLIED: Final = """
SELECT "offset", value, headers FROM log_records
WHERE topic = {topic} AND partition = {partition} AND "offset" >= {first} AND "offset" < {until}
  AND disposition = 'applied'
ORDER BY "offset" LIMIT {limit}
"""
_APPLIED_AT: Final = """
SELECT "offset", value, headers FROM log_records
WHERE topic = {topic} AND partition = {partition} AND "offset" = ANY ({offsets})
  AND disposition = 'applied'
"""
ALL_RELEASED: Final = 1 << 31


class EffectiveEvent(NamedTuple):
    """An event as it takes effect. `headers` are those of the record that brought it, in canonical bytes."""

    effective_offset: int
    rank: int
    value: bytes
    headers: bytes


class EffectiveSlice(NamedTuple):
    """Events in the order in which they take effect, and the offset to go on from."""

    events: list[EffectiveEvent]
    next_offset: int


def decode_effective(topic: str, partition: int, effective: EffectiveEvent) -> Event:
    """Return an event that the log calls applied.

    Raises SchemaNewer where a later release may know it, and AppliedEventUnreadable.
    """
    offset = effective.effective_offset
    try:
        return codec.decode(effective.value, logical_topic(topic))
    except UnknownSchema as error:
        raise SchemaNewer(topic, partition, offset, error.schema_id) from error
    except Undecodable as error:
        raise AppliedEventUnreadable(topic, partition, offset, error.reason) from error


def fetched_events(session: Session, batch: EventBatch, events_max: int) -> EffectiveSlice:
    """Return the events that take effect within a batch, which the log's checkpoint has passed as a whole.

    Those of applied records have the batch's bytes. It ends before the batch does where control records release
    `events_max` events or more.
    """
    first, until = batch.fetched_from, batch.next_offset
    place = _place(batch.topic, batch.partition)
    rows = session.query(_UNAPPLIED.format(**place, first=first, until=until))
    unapplied = {offset for offset, _ in rows}
    released: list[EffectiveEvent] = []
    if any(has_effect for _, has_effect in rows):
        released, until = _released(session, batch.topic, batch.partition, first, until, events_max)
    applied = [
        EffectiveEvent(offset, 0, value or b"", headers)
        for offset, value, headers in zip(batch.offsets, batch.values, batch.headers, strict=True)
        if offset < until and offset not in unapplied
    ]
    return EffectiveSlice(in_effect_order(applied, released), until)


def unapplied_offsets(session: Session, topic: str, partition: int, offsets: tuple[int, int]) -> set[int]:
    """Return the offsets of records that are not applied, from `offsets[0]` on and below `offsets[1]`."""
    first, until = offsets
    rows = session.query(_UNAPPLIED.format(**_place(topic, partition), first=first, until=until))
    return {offset for offset, _ in rows}


def logged_events(
    session: Session, topic: str, partition: int, offsets: tuple[int, int], events_max: int
) -> EffectiveSlice:
    """Return some `events_max` events that take effect from `offsets[0]` on and below `offsets[1]`, from the log."""
    first, until = offsets
    rows = session.frame(_APPLIED.format(**_place(topic, partition), first=first, until=until, limit=events_max)).rows()
    if len(rows) == events_max:
        until = rows[-1][0] + 1
    released, until = _released(session, topic, partition, first, until, events_max)
    applied = [EffectiveEvent(offset, 0, value, headers) for offset, value, headers in rows if offset < until]
    return EffectiveSlice(in_effect_order(applied, released), until)


def events_at(session: Session, topic: str, partition: int, offsets: Collection[int]) -> list[EffectiveEvent]:
    """Return the events that take effect at some offsets, in order."""
    if not offsets:
        return []
    listed = ",".join(str(int(offset)) for offset in sorted(offsets))
    statement = _APPLIED_AT.format(**_place(topic, partition), offsets=f"'{{{listed}}}'::bigint[]")
    rows = session.frame(statement).rows()
    found = [EffectiveEvent(offset, 0, value, headers) for offset, value, headers in rows]
    for offset in sorted(set(offsets) - {each.effective_offset for each in found}):
        found += _released(session, topic, partition, offset, offset + 1, ALL_RELEASED)[0]
    return sorted(found, key=attrgetter("effective_offset", "rank"))


def in_effect_order(applied: list[EffectiveEvent], released: list[EffectiveEvent]) -> list[EffectiveEvent]:
    """Return both as one list. Each is in order, and no offset is in both: a control record is no applied one."""
    return sorted(applied + released, key=attrgetter("effective_offset", "rank")) if released else applied


def _released(
    session: Session, topic: str, partition: int, first: int, until: int, events_max: int
) -> tuple[list[EffectiveEvent], int]:
    parking = ParkingLog(topic, partition)
    found, until = parking.released(session, first, until, events_max)
    if not found:
        return [], until
    values = parking.event_values(session, found)
    headers = _headers_of(session, parking, found)
    ranks = [rank for _, those in groupby(found, attrgetter("effective_offset")) for rank, _ in enumerate(those)]
    return [
        EffectiveEvent(each.effective_offset, rank, value, own)
        for each, rank, value, own in zip(found, ranks, values, headers, strict=True)
    ], until


def _headers_of(session: Session, parking: ParkingLog, released: Sequence[ReleasedEvent]) -> list[bytes]:
    """Return the headers of the records that brought the events: of a repaired one, those of its poison record."""
    brought_in = [each.event.offset for each in released if each.event.control_offset == each.event.offset]
    poison: Mapping[int, int] = {
        offset: redriven_of(value).poison_offset for offset, value in parking.values(session, brought_in).items()
    }
    records = [poison.get(each.event.offset, each.event.offset) for each in released]
    headers = parking.headers(session, records)
    return [headers[offset] for offset in records]


def _place(topic: str, partition: int) -> dict[str, str]:
    return {"topic": sql_literal(topic), "partition": sql_literal(partition)}
