"""Whether two records of one event id are one event, sent twice, or two events of a producer that used an id twice.

The answer follows from the bytes of both records and from what the log says of the first, so that a worker of an older
release, which may not know the first one's schema, gives the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from typing import Final, NamedTuple

from audit.canonical import field, read_headers
from projections.known_ids import LOG_SCHEMA
from projections.session import Session, quoted_table
from schemas import codec
from schemas.clock_fields import CLOCK_FIELDS, CLOCK_FIELDS_HEADER, is_clock_stamped, without_clock_fields
from schemas.codec import WIRE_PREFIX
from schemas.errors import Undecodable
from schemas.polars_import import polars as pl

LOOKED_UP_MAX: Final = 1 << 16
"""Ids that one statement looks up: those of more would be a long text, and might take longer than a statement may."""

ID_REUSED = "event_id: its producer used it before, for another event"

CLOCK_MARK: Final = (field(CLOCK_FIELDS_HEADER.encode()) + field(CLOCK_FIELDS)).hex()
"""What canonical bytes of headers hold where a record is clock-stamped, in hex."""

EVENTS_KNOWN: Final = "disposition IN ('applied', 'parked')"
"""The records whose event ids are known, in ranges whose index was made before control records could bring ids in."""

IDS_KNOWN: Final = f"({EVENTS_KNOWN} OR disposition = 'control' AND entity_id IS NOT NULL)"
"""The records whose event ids are known; the condition of the index of a closed range."""

# LIMIT keeps this a look-up in an index for each id; as a plain join the planner may read the whole range.
# Value and headers come along only where they can be needed.
_SEEN: Final = f"""
SELECT s.event_id, seen.* FROM {{asked}} CROSS JOIN LATERAL (
    SELECT substring(e.value FOR 5) || sha256(e.value) AS fingerprint, e.event_type::text AS event_type,
        CASE WHEN e.disposition = 'control' OR position(decode('{CLOCK_MARK}', 'hex') IN e.headers) > 0 THEN e.value END
            AS value,
        CASE WHEN position(decode('{CLOCK_MARK}', 'hex') IN e.headers) > 0 THEN e.headers END AS headers
    FROM {{table}} AS e WHERE e.event_id = s.event_id AND {{known}}{{where}} LIMIT 1
) AS seen
"""  # noqa: S608 (a constant)


class KnownRecord(NamedTuple):
    """Where a record may be that has an event id: in the range from `first_offset` on; `offset` in an open one."""

    first_offset: int
    event_id: bytes
    offset: int | None


def look_up(
    session: Session, tables: Mapping[int, str], candidates: Iterable[KnownRecord], narrow: Container[int] = ()
) -> dict[bytes, EventRecord]:
    """Return the event ids among the candidates that the log holds, each with the record of its event.

    `tables` are those of the ranges, by their first offsets; `narrow` the ranges that hold events alone. The record of
    an id that a control record has brought in is the control record's.
    """
    found: dict[bytes, EventRecord] = {}
    remaining = iter(candidates)
    while some := list(islice(remaining, LOOKED_UP_MAX)):
        by_range = defaultdict(list)
        for candidate in some:
            by_range[candidate.first_offset].append(candidate)
        query = "\nUNION ALL\n".join(
            seen_query(
                tables[first],
                [each.event_id for each in those],
                [each.offset for each in those],
                EVENTS_KNOWN if first in narrow else IDS_KNOWN,
            )
            for first, those in by_range.items()
        )
        seen = session.frame(query)
        records = map(EventRecord._make, seen.select("fingerprint", "event_type", "value", "headers").rows())
        found |= zip(seen["event_id"].cast(pl.Binary), records, strict=True)
    return found


def seen_query(table: str, event_ids: Sequence[bytes], offsets: Sequence[int | None], known: str = IDS_KNOWN) -> str:
    """Return the query for the records that a range of the log holds of event ids; one row an id that is there.

    Its index on event ids is asked, or the record at each id's offset, where there are offsets: an open range has no
    such index. The table's name is quoted here.
    """
    ids = f"'{{{','.join(event_id.hex() for event_id in event_ids)}}}'::uuid[]"
    name = quoted_table(LOG_SCHEMA, table)
    if offsets[0] is None:
        return _SEEN.format(asked=f"unnest({ids}) AS s (event_id)", table=name, known=known, where="")
    numbers = f"'{{{','.join(map(str, offsets))}}}'::bigint[]"
    asked = f'unnest({ids}, {numbers}) AS s (event_id, "offset")'
    return _SEEN.format(asked=asked, table=name, known=known, where=' AND e."offset" = s."offset"')


class EventRecord(NamedTuple):
    """What tells an event from another of its id. `value` and `headers` may be None where it is not clock-stamped."""

    fingerprint: bytes
    event_type: str
    value: bytes | None
    headers: bytes | None
    """In canonical bytes."""

    @property
    def schema(self) -> bytes:
        """The prefix that names its schema."""
        return self.fingerprint[: WIRE_PREFIX.size]


def event_record(value: bytes, event_type: str, headers: bytes | None) -> EventRecord:
    """Return the record of an event in a batch."""
    return EventRecord(content_fingerprint(value), event_type, value, headers)


def content_fingerprint(value: bytes) -> bytes:
    """Return the prefix that names a value's schema and the SHA-256 of the value: they tell events of one id apart."""
    return value[: WIRE_PREFIX.size] + sha256(value).digest()


def same_event(first: EventRecord, second: EventRecord) -> bool:
    """Return whether two records of one event id are one event.

    In an older and in a newer schema its bytes differ, so there only the event type is compared. Where Plant filled in
    both times from its clock, they are not compared.
    """
    if first.event_type != second.event_type:
        return False
    if first.schema != second.schema or first.fingerprint == second.fingerprint:
        return True
    return _is_clock_stamped(first) and _is_clock_stamped(second) and _same_but_for_clock(first, second)


def _is_clock_stamped(record: EventRecord) -> bool:
    return record.headers is not None and is_clock_stamped(read_headers(record.headers))


def _same_but_for_clock(first: EventRecord, second: EventRecord) -> bool:
    try:
        one, other = (without_clock_fields(codec.decode(record.value)) for record in (first, second))
    except Undecodable:
        return False
    return one == other
