"""The log's progress, for those who watch it: checkpoints, owners, and the dispositions of records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from database.connector import Database

_CHECKPOINTS: Final = text("""
    SELECT topic, partition, c.next_offset AS log, agents.next_offset AS agents
    FROM checkpoints AS c LEFT JOIN (
        SELECT topic, partition, min(next_offset) AS next_offset
        FROM projection_checkpoints JOIN read_model_builds USING (projection, version)
        WHERE read_model = 'agents' AND live GROUP BY topic, partition
    ) AS agents USING (topic, partition)
    WHERE c.consumer = 'projector' ORDER BY topic, partition
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

# Who may not see the start of other roles' sessions is left with the process id and the database.
_PARTITIONS: Final = text("""
    SELECT topic, partition, c.next_offset, nullif(o.worker, '') AS owner, o.token, o.topic_id, o.stop_reason,
           CASE WHEN o.worker <> '' THEN o.taken_at END AS taken_at,
           EXISTS (
               SELECT FROM pg_stat_activity AS a WHERE a.pid = o.backend_pid AND a.datname = current_database()
               AND coalesce(a.backend_start, o.backend_started_at) = o.backend_started_at
           ) AS connected
    FROM (SELECT * FROM partition_owners WHERE consumer = 'projector') AS o
    FULL JOIN (SELECT topic, partition, next_offset FROM checkpoints WHERE consumer = 'projector') AS c
        USING (topic, partition)
    ORDER BY topic, partition
""")

_FOLLOWERS: Final = text("""
    SELECT o.topic, o.partition, greatest(0, log.next_offset - c.next_offset) AS lag, nullif(o.worker, '') AS owner,
           o.stop_reason, EXISTS (
               SELECT FROM pg_stat_activity AS a WHERE a.pid = o.backend_pid AND a.datname = current_database()
               AND coalesce(a.backend_start, o.backend_started_at) = o.backend_started_at
           ) AS connected
    FROM partition_owners AS o
    LEFT JOIN checkpoints AS c USING (consumer, topic, partition)
    LEFT JOIN checkpoints AS log ON (log.consumer, log.topic, log.partition) = ('projector', o.topic, o.partition)
    WHERE o.consumer = :consumer AND o.worker <> '' ORDER BY o.topic, o.partition
""")

# A build that readers have left is fed no more, and a rebuild is not fed yet, or never.
_MODELS_OUT: Final = text("""
    SELECT m.projection || '/' || m.version AS model, m.topic, m.partition, m.next_offset, m.stop_reason,
           log.next_offset AS log_next_offset
    FROM model_checkpoints AS m JOIN checkpoints AS log USING (topic, partition)
    WHERE log.consumer = 'projector' AND (m.stop_reason IS NOT NULL OR m.next_offset < log.next_offset)
      AND NOT EXISTS (
          SELECT FROM read_model_builds AS own JOIN read_model_builds AS b ON b.read_model = own.read_model AND b.live
          WHERE own.projection = m.projection AND own.version = m.version AND own.phase = 'released'
            AND own.version < b.version AND NOT own.live
      )
      AND NOT EXISTS (
          SELECT FROM read_model_builds AS own WHERE own.projection = m.projection AND own.version = m.version
            AND (own.phase IN ('filling', 'retired') OR own.phase = 'released' AND own.projection <> own.read_model)
      )
    ORDER BY m.topic, m.partition, model
""")


class PartitionProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as Postgres knows it: the log's checkpoint, its last owner, and why that one has stopped it.

    `connected` says whether the owner's session is still there. None: never logged, never owned, not stopped.
    """

    topic: str
    partition: int
    next_offset: int | None
    owner: str | None
    token: int | None
    topic_id: UUID | None
    stop_reason: str | None
    taken_at: datetime | None
    connected: bool


class ConsumerProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a consumer that follows the log; `lag` counts offsets of the log that it has not passed."""

    topic: str
    partition: int
    lag: int | None
    owner: str | None
    stop_reason: str | None
    connected: bool


class ModelProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A read model that does not follow a partition's log: it is behind, or stopped for a reason."""

    model: str
    topic: str
    partition: int
    next_offset: int
    stop_reason: str | None
    log_next_offset: int


async def progress(database: Database) -> tuple[list[PartitionProgress], list[ModelProgress]]:
    """Return every partition that was ever owned or logged, and the read models that are out, as of one moment."""
    async with database.transaction(read_only=True, isolation="REPEATABLE READ") as connection:
        partitions = (await connection.execute(_PARTITIONS)).mappings().all()
        models = (await connection.execute(_MODELS_OUT)).mappings().all()
    return (
        [PartitionProgress(**row) for row in partitions],
        [ModelProgress(**row) for row in models],
    )


async def followers(database: Database, consumer: str) -> list[ConsumerProgress]:
    """Return the partitions that a consumer which follows the log has owned."""
    async with database.transaction(read_only=True) as connection:
        rows = (await connection.execute(_FOLLOWERS, {"consumer": consumer})).mappings().all()
    return [ConsumerProgress(**row) for row in rows]


async def checkpoints(database: Database) -> dict[tuple[str, int], tuple[int, int]]:
    """Return, by topic and partition, the next offsets of the log and of `agents`, as readers see it."""
    async with database.transaction() as connection:
        rows = (await connection.execute(_CHECKPOINTS)).all()
    return {(row.topic, row.partition): (row.log or 0, row.agents or 0) for row in rows}


async def dispositions(database: Database, topic: str, first_offsets: Mapping[int, int]) -> dict[str, int]:
    """Count the records from these offsets on (one for each partition), by disposition."""
    values = {"topic": topic, "partitions": list(first_offsets), "offsets": list(first_offsets.values())}
    async with database.transaction() as connection:
        return {row.disposition: row.records for row in await connection.execute(_DISPOSITIONS, values)}
