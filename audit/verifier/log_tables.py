"""The tables that the log lies in: which there are, what each should hold, and where its records begin and end."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from audit.verifier.chain_range import Chain

_TABLES_AT_ONCE: Final = 50

# Each table with its bounds, and those of its partition.
_TABLES: Final = """
SELECT t.relid::regclass::text, pg_get_expr(c.relpartbound, c.oid), pg_get_expr(p.relpartbound, p.oid)
FROM pg_partition_tree('log_records') AS t JOIN pg_class AS c ON c.oid = t.relid
LEFT JOIN pg_class AS p ON p.oid = t.parentrelid
WHERE t.isleaf ORDER BY 1
"""

_LOST: Final = """
SELECT topic, partition, first_offset FROM log_ranges WHERE NOT EXISTS (
    SELECT FROM pg_partition_tree('log_records') AS t
    WHERE t.isleaf AND t.relid = to_regclass(format('log.%I', table_name))
) ORDER BY 1, 2, 3
"""

_ENDS: Final = """
(SELECT tableoid::regclass::text, topic, partition, "offset" FROM {table} ORDER BY "offset" LIMIT 1) UNION ALL
(SELECT tableoid::regclass::text, topic, partition, "offset" FROM {table} ORDER BY "offset" DESC LIMIT 1)
"""

_NUMBER: Final = re.compile(r"\d+")


class TableEnd(NamedTuple):
    """The first or the last record of a table, and the bounds of the table and of its partition, in Postgres's text."""

    chain: Chain
    offset: int
    bounds: str | None
    partition_bounds: str | None

    @property
    def is_misplaced(self) -> bool:
        """Return whether the record is outside of the bounds of its table.

        >>> bounds = "FOR VALUES FROM ('0') TO ('64')", "FOR VALUES FROM ('t', 3) TO ('t', 4)"
        >>> [TableEnd(Chain("t", 3), offset, *bounds).is_misplaced for offset in (0, 63, 64)]
        [False, False, True]
        >>> TableEnd(Chain("t", 2), 0, *bounds).is_misplaced
        True
        """
        numbers = [int(number) for number in _NUMBER.findall(self.bounds or "")]
        topic, partition = self.chain.topic, self.chain.partition
        partition_bounds = f"FOR VALUES FROM ('{topic}', {partition}) TO ('{topic}', {partition + 1})"
        fits = len(numbers) == 2 and numbers[0] <= self.offset < numbers[1]
        return not fits or self.partition_bounds != partition_bounds


async def table_ends(connection: Any) -> list[TableEnd]:
    """Return the first and the last record of every table, by way of an asyncpg connection."""
    bounds = {name: (own, parent) for name, own, parent in await connection.fetch(_TABLES)}
    tables, found = list(bounds), list[TableEnd]()
    for start in range(0, len(tables), _TABLES_AT_ONCE):
        ends = (_ENDS.format(table=table) for table in tables[start : start + _TABLES_AT_ONCE])
        rows = await connection.fetch("UNION ALL".join(ends))
        found += [TableEnd(Chain(topic, partition), offset, *bounds[name]) for name, topic, partition, offset in rows]
    return found


async def lost_tables(connection: Any) -> list[tuple[Chain, int]]:
    """Return the chain and the first offset of each range that is no part of `log_records` any more."""
    rows = await connection.fetch(_LOST)
    return [(Chain(topic, partition), first) for topic, partition, first in rows]
