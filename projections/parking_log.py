"""What the log says of a partition's poison, parked and control records: queues as of any offset, and records in them.

A poison record has parked its entity if its row has an entity's id and no event id. A control record has an effect if
its row has a `control_offset`. It brings in an event of a new id if the row has an event id and an entity's too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from projections.parking import ControlEffect, ParkedEntities, WaitingRecord
from projections.repeats import CLOCK_MARK, EventRecord, event_record
from projections.session import Session, sql_literal
from schemas import codec
from schemas.control import RecordRedriven
from schemas.errors import UnknownSchema
from streams.errors import SchemaNewer

READ_MAX: Final = 1 << 16
"""Offsets that one statement names."""

# The index of each range on all that is not applied has these. NOT IN is a look-up in a hash table, whatever Postgres
# believes of their number.
_PARKS: Final = "{0}.disposition = 'poison' AND {0}.entity_id IS NOT NULL AND {0}.event_id IS NULL"
_OF: Final = "{0}.topic = {{topic}} AND {0}.partition = {{partition}}"
_UNAPPLIED: Final = f"{_OF} AND {{0}}.disposition <> 'applied'"

_FIRST_WAITING: Final = f"""
SELECT min(p."offset") AS first FROM log_records AS p
WHERE {_UNAPPLIED.format("p")} AND {_PARKS.format("p")} AND p."offset" < {{until}} AND p."offset" NOT IN (
    SELECT c.control_offset FROM log_records AS c
    WHERE {_UNAPPLIED.format("c")} AND c.disposition = 'control' AND c.control_offset IS NOT NULL
      AND c."offset" < {{until}}
)
"""  # noqa: S608 (constants)

# Every schema begins with the event's id.
_CHANGES: Final = f"""
SELECT r."offset", r.disposition::text AS disposition, coalesce(r.key, convert_to(r.entity_id::text, 'UTF8')) AS key,
    CASE WHEN r.disposition = 'control' THEN substring(r.value FROM 6 FOR 16) ELSE uuid_send(r.event_id) END
        AS event_id,
    r.control_offset, r.event_type::text AS event_type, r.event_id IS NOT NULL AS is_new,
    CASE WHEN r.control_offset IS NOT NULL THEN EXISTS (
        SELECT FROM log_records AS p WHERE {_OF.format("p")} AND p."offset" = r.control_offset AND {_PARKS.format("p")}
    ) END AS has_parked
FROM log_records AS r
WHERE {_UNAPPLIED.format("r")} AND r."offset" >= {{first}} AND r."offset" < {{until}} AND (
    r.disposition = 'parked' OR {_PARKS.format("r")} OR r.disposition = 'control' AND r.control_offset IS NOT NULL
)
ORDER BY r."offset"
"""  # noqa: S608 (constants)

_HAS_EFFECTS: Final = f"""
SELECT EXISTS (
    SELECT FROM log_records AS c WHERE {_UNAPPLIED.format("c")} AND c.disposition = 'control'
      AND c.control_offset IS NOT NULL AND c."offset" >= {{first}} AND c."offset" < {{until}}
) AS has
"""  # noqa: S608 (constants)

_POISON: Final = f"""
SELECT p."offset", coalesce(p.key, convert_to(p.entity_id::text, 'UTF8')) AS key,
    CASE WHEN position(decode('{CLOCK_MARK}', 'hex') IN p.headers) > 0 THEN p.headers END AS headers,
    {_PARKS.format("p")} AS has_parked
FROM log_records AS p WHERE {_OF.format("p")} AND p."offset" = ANY ({{offsets}}) AND p.disposition = 'poison'
"""  # noqa: S608 (constants)

_RESOLVED: Final = f"""
SELECT c.control_offset FROM log_records AS c
WHERE {_UNAPPLIED.format("c")} AND c.disposition = 'control' AND c.control_offset = ANY ({{offsets}})
  AND c."offset" > {{first}}
"""  # noqa: S608 (constants)

_VALUES: Final = f"""
SELECT r."offset", r.value FROM log_records AS r WHERE {_OF.format("r")} AND r."offset" = ANY ({{offsets}})
"""  # noqa: S608 (constants)

_HEADERS: Final = f"""
SELECT r."offset", r.headers FROM log_records AS r WHERE {_OF.format("r")} AND r."offset" = ANY ({{offsets}})
"""  # noqa: S608 (constants)


class PoisonRecord(NamedTuple):
    """A poison record as the log or a batch has it, without its value, which may be large.

    `headers` are in canonical bytes; they may be None where it is not clock-stamped.
    """

    key: bytes | None
    headers: bytes | None
    has_parked: bool


class ReleasedEvent(NamedTuple):
    """An event that has waited, and the offset of the control record at which it takes effect."""

    event: WaitingRecord
    effective_offset: int


class ParkingLog:
    """The log of one partition, as far as records are not applied."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._names = {"topic": sql_literal(topic), "partition": sql_literal(partition)}

    def load(self, session: Session, until: int) -> ParkedEntities:
        """Return the queues as they are before the record at an offset."""
        parked = ParkedEntities()
        ((first,),) = session.query(_FIRST_WAITING.format(**self._names, until=until))
        if first is not None:
            for _ in self.follow(session, parked, first, until):
                pass  # they took effect
        parked.commit()
        return parked

    def follow(self, session: Session, parked: ParkedEntities, first: int, until: int) -> Iterator[ReleasedEvent]:
        """Do with the queues what the log's records did from one offset on and below another; yields what they release.

        The queues are those before the first record, or empty where no earlier poison record waits after the last.
        """
        frame = session.frame(_CHANGES.format(**self._names, first=first, until=until))
        for offset, disposition, key, event_id, poison_offset, event_type, is_new, has_parked in frame.rows():
            if disposition == "poison":
                parked.park(key, offset)
            elif disposition == "parked":
                parked.add(key, WaitingRecord(offset, event_id))
            else:
                redriven = event_id if event_type == RecordRedriven.event_type else None
                effect = ControlEffect(
                    offset, key, poison_offset, has_parked, redriven, redriven is not None and is_new
                )
                for event in parked.obey(effect):
                    yield ReleasedEvent(event, offset)

    def released(self, session: Session, first: int, until: int, events_max: int) -> tuple[list[ReleasedEvent], int]:
        """Return the events that control records from one offset on release, in order, and the offset to go on from.

        That is `until`, or the one after the control record with which they have come to `events_max` or more.
        """
        found: list[ReleasedEvent] = []
        if session.query(_HAS_EFFECTS.format(**self._names, first=first, until=until)) != [(True,)]:
            return found, until
        for each in self.follow(session, self.load(session, first), first, until):
            if len(found) >= events_max and each.effective_offset > found[-1].effective_offset:
                return found, found[-1].effective_offset + 1
            found.append(each)
        return found, until

    def event_values(self, session: Session, released: Sequence[ReleasedEvent]) -> list[bytes]:
        """Return the values of released events."""
        if not released:
            return []
        return event_values([each.event for each in released], lambda offsets: self.values(session, offsets))

    def poison(self, session: Session, offsets: Sequence[int]) -> dict[int, PoisonRecord]:
        """Return the poison records among those at some offsets."""
        rows = self._at(session, _POISON, offsets)
        return {offset: PoisonRecord(*rest) for offset, *rest in rows}

    def resolved(self, session: Session, offsets: Sequence[int]) -> set[int]:
        """Return those of the poison records at some offsets that a control record has redriven or skipped."""
        first = min(offsets, default=0)
        return {offset for (offset,) in self._at(session, _RESOLVED, offsets, first=first)}

    def values(self, session: Session, offsets: Sequence[int]) -> dict[int, bytes]:
        """Return the values of the records at some offsets."""
        return dict(self._at(session, _VALUES, offsets))

    def headers(self, session: Session, offsets: Sequence[int]) -> dict[int, bytes]:
        """Return the headers of the records at some offsets, in canonical bytes."""
        return dict(self._at(session, _HEADERS, offsets))

    def brought_in(self, session: Session, records: Mapping[bytes, EventRecord]) -> dict[bytes, EventRecord]:
        """Return the records of events that control records have brought in, from those of the control records.

        Raises SchemaNewer.
        """
        redriven = {event_id: redriven_of(record.value) for event_id, record in records.items()}
        poison = self.poison(session, [each.poison_offset for each in redriven.values()])
        own_values = self.values(session, [each.poison_offset for each in redriven.values() if each.value is None])
        found = {}
        for event_id, each in redriven.items():
            value = own_values[each.poison_offset] if each.value is None else each.value
            try:
                event_type = codec.registered(value).event.event_type
            except UnknownSchema as error:
                raise SchemaNewer(self._topic, self._partition, each.poison_offset, error.schema_id) from error
            found[event_id] = event_record(value, event_type, poison[each.poison_offset].headers)
        return found

    def _at(self, session: Session, sql: str, offsets: Sequence[int], **more: int) -> Iterator[tuple[Any, ...]]:
        ordered = sorted(set(offsets))
        for start in range(0, len(ordered), READ_MAX):
            array = f"'{{{','.join(map(str, ordered[start : start + READ_MAX]))}}}'::bigint[]"
            yield from session.frame(sql.format(**self._names, offsets=array, **more)).iter_rows()


def event_values(events: Sequence[WaitingRecord], read: Callable[[Sequence[int]], Mapping[int, bytes]]) -> list[bytes]:
    """Return the values of events that have waited; `read` returns the values of records at some offsets.

    Those of a redriven record are in its control record, or its own where that one has none.
    """
    values = read([event.offset if event.control_offset is None else event.control_offset for event in events])
    found: list[bytes | None] = []
    own: dict[int, int] = {}
    for index, event in enumerate(events):
        if event.control_offset is None:
            found.append(values[event.offset])
            continue
        redriven = redriven_of(values[event.control_offset])
        found.append(redriven.value)
        if redriven.value is None:
            own[index] = redriven.poison_offset
    originals = read(list(own.values())) if own else {}
    return [originals[own[index]] if value is None else value for index, value in enumerate(found)]


def redriven_of(value: bytes | None) -> RecordRedriven:
    """Return the control record that redrives a poison record, from its value."""
    control = codec.decode_record(value)
    assert isinstance(control, RecordRedriven)
    return control
