"""Where the consumers that follow a recovered log go on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from projections.session import Session, sql_literal

UNACKNOWLEDGED_RECORDS_MAX: Final = 1_000
"""Most records of the log whose deliveries a dispatcher may have on their way to Kafka at once."""

# The first of so many records up to an offset; the first of all where there are fewer.
_BEFORE: Final = """
SELECT min("offset") AS first FROM (
    SELECT "offset" FROM log_records WHERE topic = $1 AND partition = $2 AND "offset" <= $3
    ORDER BY "offset" DESC LIMIT $4
) AS records
"""
_POISON: Final = """
SELECT "offset" FROM log_records WHERE topic = $1 AND partition = $2
  AND disposition = 'poison' AND disposition <> 'applied' AND "offset" <> ALL ($3::text::bigint[])
ORDER BY "offset" LIMIT 1
"""
_SET: Final = """
INSERT INTO checkpoints (consumer, topic, partition, next_offset)
VALUES ({consumer}, {topic}, {partition}, {next_offset}) ON CONFLICT DO NOTHING
"""


def dispatch_position(session: Session, topic: str, partition: int, last_offset: int) -> int:
    """Return an offset below which Kafka has all that was dispatched, where it has a delivery of `last_offset`."""
    key = (topic, partition, last_offset, UNACKNOWLEDGED_RECORDS_MAX)
    first = session.query(_BEFORE, key)[0][0]
    return 0 if first is None else int(first)


def dead_letter_position(
    session: Session, topic: str, partition: int, published: Collection[int], log_end: int
) -> int:  # fmt: skip
    """Return the first poison record without a dead letter, or the log's end where each has one."""
    listed = "{" + ",".join(str(int(offset)) for offset in sorted(published)) + "}"
    rows = session.query(_POISON, (topic, partition, listed))
    return int(rows[0][0]) if rows else log_end


def position_statement(consumer: str, topic: str, partition: int, next_offset: int) -> str:
    """Return the statement that lets a consumer go on at an offset, unless it has begun by itself."""
    return _SET.format(
        consumer=sql_literal(consumer), topic=sql_literal(topic), partition=int(partition), next_offset=int(next_offset)
    )
