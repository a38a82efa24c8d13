"""How far the parts of deliveries are, and what waits, for operators: by partition, and for one endpoint."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from database.connector import Database
from deliveries.failure_streak import FailureStreak

ENTITIES_MAX: Final = 10
"""Blocked entities that are named."""
COUNTED_MAX: Final = 100_000
"""Rows that a deliverer counts, again and again: more cost too much."""

# Who may not see the start of other roles' sessions is left with the process id and the database.
_PARTITIONS: Final = text("""
    WITH waits AS (
        SELECT partition, count(*) AS waiting,
               count(*) FILTER (WHERE due_at <= now() AND record IS NOT NULL) AS due,
               count(*) FILTER (WHERE due_at = 'infinity' AND record IS NULL) AS blocking
        FROM delivery_waits GROUP BY partition
    )
    SELECT o.consumer, o.partition, o.worker AS owner, o.taken_at, o.stop_reason,
           EXISTS (SELECT FROM pg_stat_activity AS a
                   WHERE a.pid = o.backend_pid AND a.datname = current_database()
                     AND coalesce(a.backend_start, o.backend_started_at) = o.backend_started_at) AS connected,
           CASE WHEN o.consumer = 'deliverer' THEN coalesce(w.waiting, 0) END AS waiting,
           CASE WHEN o.consumer = 'deliverer' THEN coalesce(w.due, 0) END AS due,
           CASE WHEN o.consumer = 'deliverer' THEN coalesce(w.blocking, 0) END AS blocking
    FROM delivery_owners AS o LEFT JOIN waits AS w ON w.partition = o.partition
    ORDER BY o.consumer, o.partition
""")
_CHECKPOINTS: Final = text("""
    SELECT consumer, topic, partition, next_offset FROM delivery_checkpoints
    WHERE consumer <> 'deliverer' OR topic NOT LIKE '%.attempts%' ORDER BY consumer, topic, partition
""")
_STREAK: Final = text("SELECT began_at, attempts, warned_percent FROM endpoint_streaks WHERE endpoint_id = :id")
_THROTTLE: Final = text("""
    SELECT throttled_until FROM endpoint_throttles WHERE endpoint_id = :id AND throttled_until > now()
""")
_WAITS: Final = text("""
    SELECT count(*) FILTER (WHERE record IS NOT NULL OR due_at < 'infinity') AS waiting,
           min(due_at) FILTER (WHERE due_at < 'infinity') AS next_at
    FROM delivery_waits WHERE endpoint_id = :id
""")
_COUNTS: Final = text("""
    SELECT (SELECT count(*) FROM (
               SELECT FROM delivery_waits
               WHERE partition = ANY (:partitions) AND record IS NOT NULL AND due_at <= now() LIMIT :rows
           ) AS d) AS due,
           (SELECT count(*) FROM (
               SELECT FROM delivery_waits
               WHERE partition = ANY (:partitions) AND record IS NOT NULL AND due_at > now() LIMIT :rows
           ) AS w) AS waiting
""")
_BLOCKED: Final = text("""
    SELECT d.entity_id, d.delivery_id, (
        SELECT count(*) FROM delivery_waits AS w
        WHERE w.partition = d.partition AND w.endpoint_id = d.endpoint_id AND w.entity_id = d.entity_id
    ) - 1 AS behind
    FROM delivery_waits AS d WHERE endpoint_id = :id AND record IS NULL AND due_at = 'infinity'
    ORDER BY d.entity_id LIMIT :rows
""")


class DeliveryPartition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition number of deliverers or recorders. Only deliverers have deliveries that wait in Postgres."""

    consumer: str
    partition: int
    owner: str
    connected: bool
    taken_at: datetime
    stop_reason: str | None
    waiting: int | None
    due: int | None
    blocking: int | None
    """Dead letters that later events of their entity wait for."""


class DeliveryCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far one topic's partition is done."""

    consumer: str
    topic: str
    partition: int
    next_offset: int


class RowCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many deliveries wait in Postgres, up to COUNTED_MAX of either kind."""

    due: int
    waiting: int
    """For their time, or behind an earlier one."""


class BlockedEntity(msgspec.Struct, frozen=True, kw_only=True):
    """An entity whose deliveries to an endpoint wait for a dead letter of it."""

    entity_id: UUID
    delivery_id: UUID
    behind: int


class EndpointProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint does: its streak, what waits for it, and what is blocked, the first entities of that."""

    streak: FailureStreak | None
    throttled_until: datetime | None
    """Until when it gets no attempts, since it asked for that."""
    waiting: int
    next_at: datetime | None
    blocked: tuple[BlockedEntity, ...]


async def delivery_partitions(database: Database) -> tuple[list[DeliveryPartition], list[DeliveryCheckpoint]]:
    """Return what is known of every partition that a deliverer or a recorder has owned, as plant_operator."""
    async with database.transaction(read_only=True) as connection:
        partitions = [DeliveryPartition(**row) for row in (await connection.execute(_PARTITIONS)).mappings()]
        checkpoints = [DeliveryCheckpoint(**row) for row in (await connection.execute(_CHECKPOINTS)).mappings()]
    return partitions, checkpoints


async def count_rows(database: Database, partitions: Collection[int]) -> RowCounts:
    """Return what waits of these partitions, as plant_deliverer."""
    async with database.transaction(read_only=True) as connection:
        counts = await connection.execute(_COUNTS, {"partitions": sorted(partitions), "rows": COUNTED_MAX})
        return RowCounts(**counts.mappings().one())


async def endpoint_progress(database: Database, endpoint_id: UUID) -> EndpointProgress:
    """Return how an endpoint does, as plant_operator."""
    async with database.transaction(read_only=True) as connection:
        streak = (await connection.execute(_STREAK, {"id": endpoint_id})).mappings().one_or_none()
        throttled_until = (await connection.execute(_THROTTLE, {"id": endpoint_id})).scalar_one_or_none()
        waits = (await connection.execute(_WAITS, {"id": endpoint_id})).mappings().one()
        blocked = await connection.execute(_BLOCKED, {"id": endpoint_id, "rows": ENTITIES_MAX})
        return EndpointProgress(
            streak=None if streak is None else FailureStreak(**streak),
            throttled_until=throttled_until,
            waiting=waits["waiting"],
            next_at=waits["next_at"],
            blocked=tuple(BlockedEntity(**row) for row in blocked.mappings()),
        )
