"""The table `outbox`: its unsent rows, the marks on them, and the purge of old ones.

Rows come in the order of entity ids, and each entity's in the order of its changes. Between entities order means
nothing, and paging by entity has two advantages: an entity with very many rows, or a blocked one, delays the others by
no more than a cycle; and a cycle reads its own page of the index `outbox_unsent`, not again and again the remains of
rows that were sent before. However many rows were sent, they are not in that index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from relay.outbox_mapper import OutboxRow

FIRST: Final = UUID(int=0)
LAST: Final = UUID(int=2**128 - 1)

# Fields that no event carries stay in the database: they may be large.
UNSENT: Final = """
SELECT id, event_id, event_type, entity_id, entity_type, governance_agent_id AS tenant, version, occurred_at,
    problem, (state - ARRAY[
    'amendment_history', 'evolution_markers', 'l0_compliance_status', 'amendment_alignment', 'drift_detector', 'tags',
    'custom_attributes', 'governance_notes', 'parent_id', 'deleted_at'])::text AS state
FROM outbox WHERE sent_at IS NULL AND entity_id >= $1 ORDER BY entity_id, id LIMIT $2
"""

MARK_SENT: Final = """
UPDATE outbox SET sent_at = clock_timestamp() WHERE id = ANY($1::bigint[]) AND sent_at IS NULL
RETURNING extract(epoch FROM sent_at - occurred_at)::float8
"""

TENANTS: Final = "SELECT DISTINCT governance_agent_id AS tenant FROM outbox WHERE governance_agent_id IS NOT NULL"
"""Returns the tenants with direct changes that are not sent, or were in the last days; to the owner."""

MARK_PROBLEM: Final = "UPDATE outbox SET problem = $2 WHERE id = $1 AND sent_at IS NULL AND problem IS NULL"

# In the order of ids, which is nearly that of time, so this needs no index of its own: rows after the first page
# without an old row are newer.
PURGE: Final = """
WITH page AS (
    SELECT id, sent_at, occurred_at < now() - make_interval(days => $3) AS old
    FROM outbox WHERE id > $1 ORDER BY id LIMIT $2
), deleted AS (
    DELETE FROM outbox AS o USING page AS s
    WHERE o.id = s.id AND s.sent_at < now() - make_interval(days => $3) RETURNING o.id
)
SELECT coalesce(max(id), 0) AS last_id, coalesce(bool_or(old), false) AS any_old,
       (SELECT count(*) FROM deleted) AS deleted
FROM page
"""


class Purge(NamedTuple):
    """The outcome of one batch of a purge. The next one begins after `after_id`; 0: no old row is left."""

    after_id: int
    deleted: int


class Outbox:
    """The table through one connection in autocommit, whose errors come out as the driver raises them."""

    def __init__(self, connection: Any) -> None:
        """`connection` is asyncpg's, which has no types."""
        self._connection = connection

    async def unsent(self, from_entity_id: UUID, rows_max: int) -> list[OutboxRow]:
        """Return unsent rows of the entities from this id on, by entity and then by age; those with a problem too."""
        rows = await self._connection.fetch(UNSENT, from_entity_id, rows_max)
        return [OutboxRow(**row) for row in rows]

    async def mark_sent(self, ids: Sequence[int]) -> list[float]:
        """Mark rows that Kafka has, in one statement; return the seconds since the change of each."""
        return [row[0] for row in await self._connection.fetch(MARK_SENT, ids)]

    async def mark_problem(self, row_id: int, reason: str) -> None:
        """Mark why no event can be made of a row: it and its entity's later rows wait for an operator."""
        await self._connection.execute(MARK_PROBLEM, row_id, reason)

    async def purge(self, after_id: int, rows: int, keep_days: int) -> Purge:
        """Delete rows that were sent more than `keep_days` ago, among the next `rows`."""
        last_id, any_old, deleted = await self._connection.fetchrow(PURGE, after_id, rows, keep_days)
        return Purge(last_id if any_old else 0, deleted)


def next_after(entity_id: UUID) -> UUID:
    """Return the least id that is greater; after the last comes the first."""
    return FIRST if entity_id == LAST else UUID(int=entity_id.int + 1)
