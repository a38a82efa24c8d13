"""The log's poison rows for the relay: those whose dead letters have not been published, and how far that is done.

A poison record's row in `event_stream` is its dead letter: it is written in the transaction that skips the record, and
is kept permanently. How far a partition's have been published is the checkpoint of the consumer `dead_letters`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

# A partition of the log has one owner of the consumer that writes it, next to those of other consumers. Partitions take
# turns: their first rows come first, then their second ones. Records are fetched for the page alone; one that is too
# large for a dead letter is not fetched.
UNSENT: Final = """
WITH page AS MATERIALIZED (
    SELECT o.topic, o.partition, poison."offset", poison.turn
    FROM partition_owners AS o
    LEFT JOIN checkpoints AS c
        ON c.consumer = 'dead_letters' AND c.topic = o.topic AND c.partition = o.partition
    CROSS JOIN LATERAL (
        SELECT waiting."offset", row_number() OVER (ORDER BY waiting."offset") AS turn
        FROM (
            SELECT e."offset" FROM event_stream AS e
            WHERE e.disposition = 'poison' AND e.topic = o.topic AND e.partition = o.partition
              AND e."offset" >= coalesce(c.next_offset, 0)
            ORDER BY e."offset" LIMIT $2
        ) AS waiting
    ) AS poison
    WHERE o.consumer = 'projector' AND split_part(o.topic, '-', 1) = $1
    ORDER BY coalesce(o.topic = $5 AND o.partition = $6, false) DESC, poison.turn, o.topic, o.partition LIMIT $2
)
SELECT page.topic, page.partition, page."offset", poison.reason, poison.size_bytes,
    CASE WHEN poison.size_bytes <= $3 OR octet_length(poison.key) <= $4 THEN poison.key END AS key,
    CASE WHEN poison.size_bytes <= $3 THEN poison.value END AS value,
    CASE WHEN poison.size_bytes <= $3 THEN poison.headers END AS headers
FROM page CROSS JOIN LATERAL (
    SELECT e.reason, e.key, e.value, e.headers,
        coalesce(octet_length(e.key), 0) + coalesce(octet_length(e.value), 0) + octet_length(e.headers) AS size_bytes
    FROM event_stream AS e
    WHERE e.disposition = 'poison' AND e.topic = page.topic AND e.partition = page.partition
      AND e."offset" = page."offset" LIMIT 1
) AS poison
ORDER BY page.turn, page.topic, page.partition
"""

ADVANCE: Final = """
INSERT INTO checkpoints AS c (consumer, topic, partition, next_offset) VALUES ('dead_letters', $1, $2, $3)
ON CONFLICT (consumer, topic, partition) DO UPDATE SET next_offset = greatest(c.next_offset, $3)
"""


class PoisonRow(NamedTuple):
    """A poison record, and why it is one. `headers` are canonical bytes (`audit/canonical.py`); None: left out."""

    topic: str
    partition: int
    offset: int
    reason: str
    size_bytes: int
    key: bytes | None
    value: bytes | None
    headers: bytes | None


class PoisonRows:
    """The poison rows through one connection in autocommit, whose errors come out as the driver raises them."""

    def __init__(self, connection: Any) -> None:
        """`connection` is asyncpg's, which has no types."""
        self._connection = connection

    async def unsent(
        self,
        logical_topic: str,
        rows_max: int,
        *,
        size_max_bytes: int,
        key_max_bytes: int,
        first: tuple[str, int] | None = None,
    ) -> list[PoisonRow]:
        """Return rows of the logical topic that have not been published, each partition's in the order of offsets.

        Every partition that has some is among them, as far as `rows_max` allows; `first` names a topic and partition
        whose rows come before all others. Of a record larger than `size_max_bytes` only the key comes, and that only up
        to `key_max_bytes`.
        """
        rows = await self._connection.fetch(
            UNSENT, logical_topic, rows_max, size_max_bytes, key_max_bytes, *(first or (None, None))
        )
        return [PoisonRow(**row) for row in rows]

    async def advance(self, topic: str, partition: int, next_offset: int) -> None:
        """Note that the partition's dead letters below this offset have been published. It never goes back."""
        await self._connection.execute(ADVANCE, topic, partition, next_offset)
