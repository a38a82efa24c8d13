"""The log's poison rows for operators: page by page, with what resolved them and what is parked behind them.

A poison record is resolved once a control record of its partition took effect on it: a row with the disposition
`control` whose `control_offset` is its offset. Every statement names topic and partition, so it goes by the small index
that each range has of all that is not applied.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import text

from database.connector import Database
from streams.topics import OPERATIONS_TOPIC

PAGE_RECORDS: Final = 500
PAGE_BYTES: Final = 4 * 1024 * 1024
"""The most that is read at a time of the records of a page; a larger record comes alone."""

PARKED_READ_MAX: Final = 100_000
"""Rows of parked events that are looked at for one page; the counts of more are lower bounds."""

PARKED_SHOWN_MAX: Final = 10

_PARTITIONS: Final = "SELECT DISTINCT topic, partition FROM log_ranges ORDER BY topic, partition"

_LOG_ENDS: Final = """
SELECT topic, partition, next_offset FROM checkpoints WHERE consumer = 'projector' ORDER BY topic, partition
"""

_STOP_REASON: Final = """
SELECT stop_reason FROM partition_owners WHERE consumer = 'projector' AND topic = :topic AND partition = :partition
"""

_ONE_PARTITION: Final = "FROM log_records AS e WHERE e.topic = :topic AND e.partition = :partition"

_KEY: Final = "coalesce(e.key, convert_to(e.entity_id::text, 'UTF8'))"

# Rows are counted before they are looked at, so that each statement is short, however few are asked for.
_PAGE: Final = f"""
SELECT e."offset", octet_length(e.headers) + coalesce(octet_length(e.value), 0) AS size_bytes, {{conditions}} AS asked
FROM (
    SELECT e."offset", e.created_at, e.reason, e.key, e.entity_id, e.value, e.headers
    {_ONE_PARTITION} AND e.disposition = 'poison' AND e."offset" >= :first AND e."offset" < :until
    ORDER BY e."offset" LIMIT {PAGE_RECORDS}
) AS e ORDER BY e."offset"
"""  # noqa: S608 (constants)

_CONDITIONS: Final[Mapping[str, str]] = {
    "cause": "strpos(lower(e.reason), lower(CAST(:cause AS text))) > 0",
    "since": "e.created_at >= CAST(:since AS timestamptz)",
    "before": "e.created_at < CAST(:before AS timestamptz)",
    "entity": f"{_KEY} = convert_to(CAST(:entity AS text), 'UTF8')",
}

_RECORDS: Final = f"""
SELECT e."offset", e.disposition::text AS disposition, e.created_at, e.reason, {_KEY} AS key, e.entity_id, e.event_id,
    e.event_type::text AS event_type, e.headers, octet_length(e.value) AS value_bytes,
    CASE WHEN :whole THEN e.value ELSE substring(e.value FOR 5) END AS value
{_ONE_PARTITION} AND e."offset" = ANY(CAST(:offsets AS bigint[])) ORDER BY e."offset"
"""

_RESOLVED: Final = f"""
SELECT e.control_offset, min(e."offset") AS "offset"
{_ONE_PARTITION} AND e.disposition = 'control' AND e."offset" > :first
    AND e.control_offset BETWEEN :first AND :last
GROUP BY e.control_offset
"""

_PARKED: Final = f"""
SELECT e.entity_id, e."offset" FROM (
    SELECT e.entity_id, e."offset" {_ONE_PARTITION} AND e.disposition = 'parked' AND e."offset" > :first
    ORDER BY e."offset" LIMIT {PARKED_READ_MAX}
) AS e WHERE e.entity_id = ANY(CAST(:entities AS uuid[])) ORDER BY e."offset"
"""  # noqa: S608 (constants)

_INEFFECTIVE: Final = f"""
SELECT e."offset", e.value
{_ONE_PARTITION} AND e.disposition = 'control' AND e.control_offset IS NULL
    AND e."offset" >= :first AND e."offset" <= :last AND position(CAST(:mark AS bytea) IN e.headers) > 0
ORDER BY e."offset" LIMIT {PAGE_RECORDS}
"""

# Operators' actions are few: the open range of their topic, which has no index on event ids, is never large.
_OPERATION: Final = f"""
SELECT e.value FROM log_records AS e
WHERE e.topic = '{OPERATIONS_TOPIC}' AND e.event_id = :event_id AND e.disposition IN ('applied', 'parked') LIMIT 1
"""  # noqa: S608 (a constant)


class RowFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What poison rows are asked for; None asks for all. `cause` is part of the reason, in any case of letters."""

    topic: str | None = None
    partition: int | None = None
    cause: str | None = None
    entity: UUID | None = None
    since: datetime | None = None
    before: datetime | None = None

    def includes(self, topic: str, partition: int) -> bool:
        """Return whether it asks for rows of a partition."""
        return self.topic in (None, topic) and self.partition in (None, partition)

    def conditions(self) -> dict[str, object]:
        """Return the values of the conditions that it has on a row, by name."""
        values = {
            "cause": self.cause,
            "since": self.since,
            "before": self.before,
            "entity": None if self.entity is None else str(self.entity),
        }
        return {name: value for name, value in values.items() if value is not None}


class PageEntry(NamedTuple):
    """A poison row by its offset, its size, and whether a filter asks for it."""

    offset: int
    size_bytes: int
    asked: bool


class LoggedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the log, and why it is poison. `headers` are canonical bytes (`audit/canonical.py`).

    `value` may be its first five bytes alone, which name its schema; `value_bytes` is its length, None for null.
    """

    topic: str
    partition: int
    offset: int
    disposition: str
    created_at: datetime
    reason: str | None
    key: bytes | None
    entity_id: UUID | None
    event_id: UUID | None
    event_type: str | None
    headers: bytes
    value: bytes | None
    value_bytes: int | None

    @property
    def parks(self) -> bool:
        """Whether later events of its entity wait behind it while it is not resolved."""
        return self.disposition == "poison" and self.entity_id is not None and self.event_id is None


class ParkedCount(msgspec.Struct, frozen=True):
    """How many events are parked behind a record, and the offsets of the first; `at_least`: there may be more."""

    events: int = 0
    at_least: bool = False
    first_offsets: tuple[int, ...] = ()


class DeadLetterRows:
    """The poison rows through a role's connections. Each call is a transaction: rows of the log never change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def partitions(self) -> list[tuple[str, int]]:
        """Return topic and number of every partition that has a log, sorted."""
        return [(row["topic"], row["partition"]) for row in await self._fetch(_PARTITIONS)]

    async def log_ends(self) -> dict[tuple[str, int], int]:
        """Return the offset that comes next in each partition's log."""
        return {(row["topic"], row["partition"]): row["next_offset"] for row in await self._fetch(_LOG_ENDS)}

    async def stop_reason(self, topic: str, partition: int) -> str | None:
        """Return why the partition's owner has stopped it; None where it has not."""
        rows = await self._fetch(_STOP_REASON, topic=topic, partition=partition)
        return rows[0]["stop_reason"] if rows else None

    async def page(self, topic: str, partition: int, asked: RowFilter, *, first: int, until: int) -> list[PageEntry]:
        """Return the next PAGE_RECORDS poison rows from `first` on, those before `until`, and which are asked for."""
        conditions = asked.conditions()
        wanted = " AND ".join(_CONDITIONS[name] for name in conditions) or "true"
        rows = await self._fetch(
            _PAGE.format(conditions=wanted), topic=topic, partition=partition, first=first, until=until, **conditions
        )
        return [PageEntry(row["offset"], row["size_bytes"], bool(row["asked"])) for row in rows]

    async def records(self, topic: str, partition: int, offsets: Sequence[int], *, whole: bool) -> list[LoggedRow]:
        """Return the log's rows at these offsets, in order; of their values the first bytes alone unless `whole`."""
        rows = await self._fetch(_RECORDS, topic=topic, partition=partition, offsets=list(offsets), whole=whole)
        return [LoggedRow(topic=topic, partition=partition, **row) for row in rows]

    async def resolved(self, topic: str, partition: int, first: int, last: int) -> dict[int, int]:
        """Return the offsets of resolved poison rows from `first` to `last`, each with that of its control record."""
        rows = await self._fetch(_RESOLVED, topic=topic, partition=partition, first=first, last=last)
        return {row["control_offset"]: row["offset"] for row in rows}

    async def parked(self, rows: Sequence[LoggedRow]) -> dict[int, ParkedCount]:
        """Count the parked events of each row's entity behind it, by the row's offset; rows of one partition.

        It looks at PARKED_READ_MAX parked events behind the first row at most. Rows that park nothing are left out.
        """
        parking = [row for row in rows if row.parks]
        if not parking:
            return {}
        first = parking[0]
        entities = list({str(row.entity_id) for row in parking})
        found = await self._fetch(
            _PARKED, topic=first.topic, partition=first.partition, first=first.offset, entities=entities
        )
        offsets: dict[UUID, list[int]] = {}
        for each in found:
            offsets.setdefault(each["entity_id"], []).append(each["offset"])
        at_least = await self._is_cut(first)
        return {row.offset: _behind(row, offsets, at_least) for row in parking}

    async def _is_cut(self, first: LoggedRow) -> bool:
        """Return whether there are more parked events behind a row than are looked at."""
        query = f"""
            SELECT 1 AS one {_ONE_PARTITION} AND e.disposition = 'parked' AND e."offset" > :first
            ORDER BY e."offset" OFFSET {PARKED_READ_MAX} LIMIT 1
        """
        return bool(await self._fetch(query, topic=first.topic, partition=first.partition, first=first.offset))

    async def ineffective(
        self, topic: str, partition: int, first: int, last: int, mark: bytes
    ) -> list[tuple[int, bytes]]:
        """Return offsets and values of control records without effect whose headers hold `mark`: the first ones."""
        rows = await self._fetch(_INEFFECTIVE, topic=topic, partition=partition, first=first, last=last, mark=mark)
        return [(row["offset"], row["value"]) for row in rows]

    async def operation_value(self, event_id: UUID) -> bytes | None:
        """Return the value of the event that records an operator action; None where the log does not have it."""
        rows = await self._fetch(_OPERATION, event_id=event_id)
        return rows[0]["value"] if rows else None

    async def _fetch(self, query: str, **values: object) -> list[dict[str, Any]]:
        async with self._database.transaction(read_only=True) as connection:
            return [dict(row) for row in (await connection.execute(text(query), values)).mappings()]


def _behind(row: LoggedRow, offsets: Mapping[UUID, Sequence[int]], at_least: bool) -> ParkedCount:
    assert row.entity_id is not None
    of_entity = offsets.get(row.entity_id, ())
    start = bisect_right(of_entity, row.offset)
    return ParkedCount(len(of_entity) - start, at_least, tuple(of_entity[start : start + PARKED_SHOWN_MAX]))
