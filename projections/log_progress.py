"""The log's progress, for those who watch it: checkpoints, and the dispositions of records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import text

from database.connector import Database

_CHECKPOINTS: Final = text("""
    SELECT topic, partition, min(next_offset) FILTER (WHERE projection = 'log') AS log,
           min(next_offset) FILTER (WHERE projection = 'agents') AS agents
    FROM checkpoints GROUP BY topic, partition ORDER BY topic, partition
""")

_DISPOSITIONS: Final = text("""
    SELECT e.disposition, sum(e.records)::bigint AS records
    FROM unnest(CAST(:partitions AS int[]), CAST(:offsets AS bigint[])) AS run (partition, first)
    CROSS JOIN LATERAL (
        SELECT disposition, count(*) AS records FROM event_stream
        WHERE topic = :topic AND partition = run.partition AND "offset" >= run.first GROUP BY disposition
    ) AS e
    GROUP BY e.disposition ORDER BY e.disposition
""")


async def checkpoints(database: Database) -> dict[tuple[str, int], tuple[int, int]]:
    """Return, by topic and partition, the next offsets of the log and of the read model `agents`."""
    async with database.transaction() as connection:
        rows = (await connection.execute(_CHECKPOINTS)).all()
    return {(row.topic, row.partition): (row.log or 0, row.agents or 0) for row in rows}


async def dispositions(database: Database, topic: str, first_offsets: Mapping[int, int]) -> dict[str, int]:
    """Count the records from these offsets on (one for each partition), by disposition."""
    values = {"topic": topic, "partitions": list(first_offsets), "offsets": list(first_offsets.values())}
    async with database.transaction() as connection:
        return {row.disposition: row.records for row in await connection.execute(_DISPOSITIONS, values)}
