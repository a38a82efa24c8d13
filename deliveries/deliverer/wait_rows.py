"""The rows of deliveries that wait, and of marks: statements of an owner's transactions, and what it asks for.

Rows are written by text: few deliveries of a healthy endpoint wait, and a round's rows go in one trip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from deliveries.deliverer.entity_order import EntityOfEndpoint
from deliveries.deliverer.source_marks import MarkedSource, SourceMark
from projections.session import Session, sql_literal

DUE_ROWS_MAX: Final = 1_000
PROBES_NEAR: Final = 50
"""Of how many rows that have been due for the longest, and for the shortest, one is chosen to probe an endpoint."""

# A dead letter that others of its entity wait for has a row, too: it has no record and no time.
_HOPS: Final = """
SELECT uuid_send(delivery_id) AS id, hop FROM delivery_waits
WHERE delivery_id = ANY ({ids}) AND (record IS NOT NULL OR due_at < 'infinity')
"""
_DUE: Final = """
(SELECT uuid_send(delivery_id) AS delivery_id, record, due_at FROM delivery_waits
 WHERE partition = {partition} AND record IS NOT NULL AND due_at <= now() AND delivery_id <> ALL ({ids})
   AND endpoint_id <> ALL ({aside})
 ORDER BY due_at LIMIT {limit})
UNION ALL
(SELECT NULL, NULL, due_at FROM delivery_waits
 WHERE partition = {partition} AND record IS NOT NULL AND due_at > now() AND due_at < 'infinity'
   AND endpoint_id <> ALL ({aside})
 ORDER BY due_at LIMIT 1)
"""
# Not `record IS NOT NULL`: with it the index by time may be read, in which thousands of others' come first.
_WANTED: Final = """
SELECT uuid_send(e.id) AS endpoint_id, uuid_send(w.delivery_id) AS delivery_id, w.due_at,
    CASE WHEN w.due_at <= now() THEN w.record END AS record
FROM unnest({endpoints}, {rows_max}) AS e (id, rows_max) CROSS JOIN LATERAL (
    SELECT delivery_id, due_at, record FROM delivery_waits
    WHERE partition = {partition} AND endpoint_id = e.id AND coalesce(record, '') <> '' AND due_at < 'infinity'
      AND delivery_id <> ALL ({ids})
    ORDER BY due_at LIMIT e.rows_max
) AS w
"""
# Of an endpoint that is probed: rather one that has waited here alone, and was not attempted before. What was refused
# time and again is due for the longest, and may be refused whatever the endpoint does. Chance chooses among them: those
# that an endpoint refuses may come in a row.
_PROBES: Final = """
SELECT uuid_send(e.id) AS endpoint_id, uuid_send(w.delivery_id) AS delivery_id, w.due_at,
    CASE WHEN w.due_at <= now() THEN w.record END AS record
FROM unnest({endpoints}) AS e (id) CROSS JOIN LATERAL (
    SELECT delivery_id, due_at, record FROM (
        (SELECT delivery_id, due_at, record, hop FROM delivery_waits
         WHERE partition = {partition} AND endpoint_id = e.id AND coalesce(record, '') <> '' AND due_at < 'infinity'
           AND delivery_id <> ALL ({ids})
         ORDER BY due_at LIMIT {near})
        UNION ALL
        (SELECT delivery_id, due_at, record, hop FROM delivery_waits
         WHERE partition = {partition} AND endpoint_id = e.id AND coalesce(record, '') <> '' AND due_at <= now()
           AND delivery_id <> ALL ({ids})
         ORDER BY due_at DESC LIMIT {near})
    ) AS near
    ORDER BY due_at > now(), hop > 1, CASE WHEN due_at <= now() THEN random() END, due_at LIMIT 1
) AS w
"""
_MARKS: Final = """
SELECT stream::text AS stream, source_partition, source_offset, source_rank, uuid_send(endpoint_id) AS endpoint_id
FROM delivery_marks WHERE partition = $1
"""
_FORGET_REDRIVES: Final = """
DELETE FROM delivery_marks WHERE partition = $1 AND stream LIKE 'redrive %' AND EXISTS (
    SELECT FROM redrives WHERE stream = 'redrive ' || number AND ended_at < now() - interval '8 days'
)
"""
# A dead letter that others wait for stays as it is: without a record and a time.
_NEXT_BEHIND: Final = """
UPDATE delivery_waits SET due_at = now() WHERE delivery_id = (
    SELECT delivery_id FROM delivery_waits
    WHERE partition = {partition} AND endpoint_id = {endpoint} AND entity_id = {entity}
    ORDER BY source_partition, source_offset, source_rank LIMIT 1
) AND due_at = 'infinity' AND record IS NOT NULL
"""
_HELD: Final = """
SELECT DISTINCT uuid_send(endpoint_id) AS endpoint_id, uuid_send(entity_id) AS entity_id FROM delivery_waits
WHERE partition = $1 AND entity_id IS NOT NULL
"""


class WaitRow(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that waits. Without a record it is in a retry topic; without a time it waits behind another one."""

    delivery_id: bytes
    endpoint_id: bytes
    hop: int
    due_at: datetime | None
    record: bytes | None
    entity_id: bytes | None
    source_partition: int
    source_offset: int
    source_rank: int


class DeliveryInRow(NamedTuple):
    """A delivery whose record is in a row, and due."""

    delivery_id: bytes
    record: bytes


class WaitRows(NamedTuple):
    """Deliveries that were found in rows."""

    due: Sequence[DeliveryInRow] = ()
    """Those that are due, the longest first."""
    next_due_at: datetime | None = None
    """When the next one is due that is not yet."""
    with_more: Collection[bytes] = ()
    """The endpoints of which as many are due as were asked for."""
    without_rows: Collection[bytes] = ()
    """The endpoints of which none was found, due or not."""


NO_ROWS: Final = WaitRows()


def find_hops(session: Session, delivery_ids: Collection[bytes]) -> dict[bytes, int]:
    """Return the hop of each of these deliveries that waits."""
    if not delivery_ids:
        return {}
    return dict(session.frame(_HOPS.format(ids=_array(delivery_ids))).iter_rows())


def find_due(
    session: Session, partition: int, without: Collection[bytes], aside: Collection[bytes], rows_max: int
) -> WaitRows:
    """Return deliveries that are due, and when the next one is that is not yet.

    Left out are those of endpoints that are set aside, and of what is due those that are under way.
    """
    limit = min(rows_max, DUE_ROWS_MAX)
    frame = session.frame(
        _DUE.format(partition=int(partition), ids=_array(without), aside=_array(aside), limit=int(limit))
    )
    rows = list(frame.iter_rows())
    later = [due_at for _, record, due_at in rows if record is None]
    due = [DeliveryInRow(delivery_id, record) for delivery_id, record, _ in rows if record is not None]
    return WaitRows(due, later[0].astimezone(UTC) if later else None)


def find_wanted(
    session: Session, partition: int, without: Collection[bytes], wanted: Mapping[bytes, int],
    probed: Collection[bytes] = (),
) -> WaitRows:  # fmt: skip
    """Return endpoints' deliveries that are due, of each up to its number, but for those that are under way.

    Of those that are probed it is one, and rather one that was not attempted before.
    """
    ids = _array(without)
    others = {endpoint_id: rows_max for endpoint_id, rows_max in wanted.items() if endpoint_id not in probed}
    statements = []
    if others:
        rows_max = f"'{{{','.join(str(int(each)) for each in others.values())}}}'::integer[]"
        endpoints = _array(others)
        statements.append(_WANTED.format(partition=int(partition), ids=ids, endpoints=endpoints, rows_max=rows_max))
    if probed:
        endpoints = _array(probed)
        statements.append(_PROBES.format(partition=int(partition), ids=ids, endpoints=endpoints, near=PROBES_NEAR))
    rows = sorted((row for each in statements for row in session.frame(each).iter_rows()), key=_due_at)
    later = [due_at for _, _, due_at, record in rows if record is None]
    counts = Counter(endpoint_id for endpoint_id, _, _, record in rows if record is not None)
    return WaitRows(
        due=[DeliveryInRow(delivery_id, record) for _, delivery_id, _, record in rows if record is not None],
        next_due_at=min(later).astimezone(UTC) if later else None,
        with_more=[endpoint_id for endpoint_id, count in counts.items() if count >= wanted[endpoint_id]],
        without_rows=wanted.keys() - {endpoint_id for endpoint_id, _, _, _ in rows},
    )


def find_marks(session: Session, partition: int) -> dict[MarkedSource, SourceMark]:
    """Return the stored marks of a partition, but for redrives whose records are off their topic by now."""
    session.execute(_FORGET_REDRIVES, (partition,))
    rows = session.frame(_MARKS, (partition,)).iter_rows()
    return {
        MarkedSource(stream, source_partition): SourceMark(offset, rank, endpoint_id)
        for stream, source_partition, offset, rank, endpoint_id in rows
    }


def find_held(session: Session, partition: int) -> set[EntityOfEndpoint]:
    """Return the endpoints and entities of which a delivery waits that none may overtake."""
    return {EntityOfEndpoint(*row) for row in session.frame(_HELD, (partition,)).iter_rows()}


def mark_statements(partition: int, marks: Mapping[MarkedSource, SourceMark]) -> list[str]:
    """Return the statement that stores marks; none for none."""
    if not marks:
        return []
    rows = ", ".join(
        f"({int(partition)}, {sql_literal(source.stream)}, {int(source.source_partition)}, {int(mark.source_offset)},"
        f" {int(mark.source_rank)}, {_uuid(mark.endpoint_id)})"
        for source, mark in marks.items()
    )
    return [
        "INSERT INTO delivery_marks (partition, stream, source_partition, source_offset, source_rank, endpoint_id)"  # noqa: S608 (numbers and ids)
        f" VALUES {rows} ON CONFLICT (partition, stream, source_partition) DO UPDATE"
        " SET source_offset = excluded.source_offset, source_rank = excluded.source_rank,"
        " endpoint_id = excluded.endpoint_id"
    ]


def wait_statements(partition: int, waiting: Iterable[WaitRow], ended: Iterable[bytes]) -> list[str]:
    """Return the statements that store deliveries which wait, and drop those that wait no more."""
    statements = []
    rows = sorted(waiting, key=lambda row: row.delivery_id)
    if rows:
        values = ", ".join(_values(partition, row) for row in rows)
        statements.append(
            "INSERT INTO delivery_waits (delivery_id, partition, endpoint_id, hop, due_at, record, entity_id,"  # noqa: S608 (numbers and ids)
            f" source_partition, source_offset, source_rank) VALUES {values}"
            " ON CONFLICT (delivery_id) DO UPDATE SET hop = excluded.hop, due_at = excluded.due_at,"
            " record = excluded.record, entity_id = excluded.entity_id"
        )
    if ids := sorted(ended):
        statements.append(f"DELETE FROM delivery_waits WHERE delivery_id = ANY ({_array(ids)})")  # noqa: S608 (ids)
    return statements


def release_statement(partition: int, held: EntityOfEndpoint) -> str:
    """Return the statement that lets the first delivery that waits behind others of its entity be due."""
    return _NEXT_BEHIND.format(partition=int(partition), endpoint=_uuid(held.endpoint_id), entity=_uuid(held.entity_id))


def disable_statement(endpoint_id: bytes, why: str) -> str:
    """Return the statement that disables an endpoint."""
    return f"SELECT disable_endpoint({_uuid(endpoint_id)}, {sql_literal(why)})"


def _values(partition: int, row: WaitRow) -> str:
    due_at = "'infinity'" if row.due_at is None else f"'{row.due_at.astimezone(UTC).isoformat()}'"
    record = "NULL" if row.record is None else f"'\\x{row.record.hex()}'::bytea"
    entity = "NULL::uuid" if row.entity_id is None else _uuid(row.entity_id)
    return (
        f"({_uuid(row.delivery_id)}, {int(partition)}, {_uuid(row.endpoint_id)}, {int(row.hop)}, {due_at}::timestamptz,"
        f" {record}, {entity}, {int(row.source_partition)}, {int(row.source_offset)}, {int(row.source_rank)})"
    )


def _due_at(row: tuple[bytes, bytes, datetime, bytes | None]) -> datetime:
    return row[2]


def _uuid(value: bytes) -> str:
    return f"'{value.hex()}'::uuid"


def _array(ids: Collection[bytes]) -> str:
    return f"'{{{','.join(each.hex() for each in ids)}}}'::uuid[]"
