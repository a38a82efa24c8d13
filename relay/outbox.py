"""The table `outbox`: its unsent rows, what is noted on them, and how old ones go.

Rows come in the order of entity ids, and each entity's in the order of its changes. Between entities order means
nothing, and going round by entity has two virtues: an entity with very many rows, or one that is held up, keeps
nobody waiting for more than a round; and a round reads its own stretch of the index `outbox_unsent`, not again and
again the remains of rows that were sent before. Rows of any number that were sent are not in that index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.outbox_mapper import OutboxRow

FIRST: Final = UUID(int=0)
LAST: Final = UUID(int=2**128 - 1)

# What no event carries stays in the database: it may be large.
UNSENT: Final = """
SELECT id, event_id, event_type, entity_id, entity_type, occurred_at, problem, (state - ARRAY[
    'amendment_history', 'evolution_markers', 'l0_compliance_status', 'amendment_alignment', 'drift_detector', 'tags',
    'custom_attributes', 'governance_notes', 'parent_id', 'deleted_at'])::text AS state
FROM outbox WHERE sent_at IS NULL AND entity_id >= $1 ORDER BY entity_id, id LIMIT $2
"""

MARK_SENT: Final = """
UPDATE outbox SET sent_at = clock_timestamp() WHERE id = ANY($1::bigint[]) AND sent_at IS NULL
RETURNING extract(epoch FROM sent_at - occurred_at)::float8
"""

MARK_PROBLEM: Final = "UPDATE outbox SET problem = $2 WHERE id = $1 AND sent_at IS NULL AND problem IS NULL"

# In the order of ids, which is nearly that of time, so this needs no index of its own: what comes after the first
# stretch without an old row is newer.
DELETE_OLD: Final = """
WITH stretch AS (
    SELECT id, sent_at, occurred_at < now() - make_interval(days => $3) AS old
    FROM outbox WHERE id > $1 ORDER BY id LIMIT $2
), deleted AS (
    DELETE FROM outbox AS o USING stretch AS s
    WHERE o.id = s.id AND s.sent_at < now() - make_interval(days => $3) RETURNING o.id
)
SELECT coalesce(max(id), 0) AS last_id, coalesce(bool_or(old), false) AS any_old,
       (SELECT count(*) FROM deleted) AS deleted
FROM stretch
"""


class Purge(NamedTuple):
    """What one batch of deleting did. `after_id` is where the next goes on; 0: nothing old is left."""

    after_id: int
    deleted: int


class Outbox:
    """The table through one connection in autocommit, whose errors come out as the driver raises them."""

    def __init__(self, connection: Any) -> None:
        """`connection` is asyncpg's, which has no types."""
        self._connection = connection

    async def unsent(self, from_entity_id: UUID, rows_max: int) -> list[OutboxRow]:
        """Unsent rows of the entities from this id on, by entity and then by age; those with a problem too."""
        rows = await self._connection.fetch(UNSENT, from_entity_id, rows_max)
        return [OutboxRow(**row) for row in rows]

    async def mark_sent(self, ids: Sequence[int]) -> list[float]:
        """Note that Kafka has them; for each, how many seconds after its change. In one statement."""
        return [row[0] for row in await self._connection.fetch(MARK_SENT, ids)]

    async def mark_problem(self, row_id: int, reason: str) -> None:
        """Note why no event can be made of a row: it and its entity's later rows wait for an operator."""
        await self._connection.execute(MARK_PROBLEM, row_id, reason)

    async def delete_old(self, after_id: int, rows: int, keep_days: int) -> Purge:
        """Delete what was sent longer ago than that, among the next rows."""
        last_id, any_old, deleted = await self._connection.fetchrow(DELETE_OLD, after_id, rows, keep_days)
        return Purge(last_id if any_old else 0, deleted)


def next_after(entity_id: UUID) -> UUID:
    """The least id that is greater; after the last comes the first."""
    return FIRST if entity_id == LAST else UUID(int=entity_id.int + 1)
