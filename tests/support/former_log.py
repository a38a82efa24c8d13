"""The log as it was up to revision 016, two tables, as its writer filled them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.log_rows import Row, on_connection


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
