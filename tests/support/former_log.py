"""The log as it was up to revision 016, two tables, as its writer filled them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from audit.canonical import headers_bytes
from audit.chain import CHAIN_START, extend
from tests.support.log_rows import EPOCH, STARTED_MS, Row, on_connection

HEADERS = headers_bytes([("ce_id", b"1"), ("ce_type", b"genesis.agent.rated"), ("h", None)])
BATCH = 10_000

# A sum of hashes does not depend on the order, and is the same however many rows there are.
ROWS = """
SELECT array_agg(concat_ws(' ', name, topic, partition, n, hashes) ORDER BY name, topic, partition) FROM (
    SELECT 'event_stream' AS name, topic, partition, count(*) AS n, sum(hashtextextended(concat_ws('|', "offset",
        created_at, disposition, event_id, coalesce(key::text, '-'), coalesce(value::text, '-'), headers,
        coalesce(reason, '-')), 0)::numeric) AS hashes FROM event_stream GROUP BY topic, partition
    UNION ALL
    SELECT 'audit_log', topic, partition, count(*), sum(hashtextextended(concat_ws('|', "offset", created_at,
        coalesce(entity_type::text, '-'), coalesce(entity_id::text, '-'), coalesce(event_type::text, '-'),
        previous_hash, hash), 0)::numeric) FROM audit_log GROUP BY topic, partition
) AS tables
"""


def store(url: str, rows: Sequence[Row]) -> None:
    """Append rows to both tables, in one transaction."""

    async def work(connection: Any) -> None:
        async with connection.transaction():
            await connection.copy_records_to_table("event_stream", records=list(map(in_stream, rows)))
            await connection.copy_records_to_table("audit_log", records=list(map(in_audit, rows)))

    on_connection(url, work)


def in_stream(row: Row) -> tuple[Any, ...]:
    """Return a record's row of event_stream."""
    record = (row.disposition, row.event_id, row.key, row.value, row.headers, row.reason)
    return (row.topic, row.partition, row.offset, row.created_at, *record)


def in_audit(row: Row) -> tuple[Any, ...]:
    """Return a record's row of audit_log."""
    link = (row.entity_type, row.entity_id, row.event_type, row.previous_hash, row.hash)
    return (row.topic, row.partition, row.offset, row.created_at, *link)


def fill(url: str, topic: str, partition: int, count: int, start: int = 0, head: bytes = CHAIN_START) -> bytes:
    """Append so many records from an offset on, batch by batch; return the chain's new head."""
    for first in range(start, start + count, BATCH):
        rows = list(
            linked([record(topic, partition, n) for n in range(first, min(first + BATCH, start + count))], head)
        )
        store(url, rows)
        head = rows[-1].hash
    return head


def linked(rows: Sequence[Row], head: bytes) -> Iterator[Row]:
    """Yield rows with the links of a chain of v1 that goes on from `head`."""
    columns = zip(*((row.offset, row.timestamp_ms, row.key, row.value, row.headers) for row in rows), strict=True)
    hashes = extend(rows[0].topic, rows[0].partition, head, *map(list, columns))
    for row, before, after in zip(rows, [head, *hashes], hashes, strict=False):
        yield replace(row, previous_hash=before, hash=after)


def record(topic: str, partition: int, number: int) -> Row:
    """Return the record of a number, unlinked: mostly events, and of every hundred some that are none; gaps in tens."""
    position = (topic, partition, number + number // 10, STARTED_MS + number % 977)
    event_id, entity_id = UUID(int=(partition << 64) + number + 1), UUID(int=number % 5_000 + 1)
    key, value = str(entity_id).encode(), b"\x00\x00\x00\x00\x01%d" % number
    event = ("agent", entity_id, "genesis.agent.rated")
    match number % 100:
        case 20:
            return Row(*position, "repeat", UUID(int=(partition << 64) + number), key, value, HEADERS, None, *event)
        case 30:  # an id that was used before
            return Row(*position, "poison", event_id, key, value, HEADERS, "its producer used it before", *event)
        case 40:
            return Row(*position, "parked", event_id, key, value, HEADERS, None, *event)
        case 50 | 51 | 52 | 53:
            odd = (None, b"", b"no id", str(entity_id).upper().encode())[number % 100 - 50]
            return Row(*position, "poison", None, odd, None, headers_bytes([]), "no event", None, None, None)
        case 60:
            return Row(*position, "applied", event_id, b"another", value, HEADERS, None, *event)
    return Row(*position, "applied", event_id, key, value, HEADERS, None, *event)


def chains_hold(url: str, chains: int) -> bool:
    """Recompute every hash of so many chains from what the names `event_stream` and `audit_log` show."""

    async def recompute(connection: Any) -> bool:
        query = """SELECT s.topic, s.partition, "offset", s.created_at, key, value, headers, hash FROM event_stream AS s
            JOIN audit_log AS a USING (topic, partition, "offset") ORDER BY s.topic, s.partition, "offset" """
        heads: dict[tuple[str, int], bytes] = {}
        async with connection.transaction():
            async for row in connection.cursor(query, prefetch=10_000):
                chain = (row["topic"], row["partition"])
                since = row["created_at"] - EPOCH
                columns = ([row[name]] for name in ("key", "value", "headers"))
                milliseconds = since.days * 86_400_000 + since.seconds * 1_000 + since.microseconds // 1_000
                (after,) = extend(*chain, heads.get(chain, CHAIN_START), [row["offset"]], [milliseconds], *columns)
                if after != row["hash"]:
                    return False
                heads[chain] = after
        return len(heads) == chains

    return bool(on_connection(url, recompute))
