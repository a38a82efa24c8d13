"""The tables that the log lies in: which there are, what each is for, and where its records begin and end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from audit.verifier.chain_range import Chain

_TABLES_AT_ONCE: Final = 50

# Each table with its bounds, and those of its partition. Names are looked up by number: no search path has a say.
_TABLES: Final = """
SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relkind = 'r' AS is_plain,
    pg_get_expr(c.relpartbound, c.oid) AS bounds, pg_get_expr(p.relpartbound, p.oid) AS partition_bounds,
    (SELECT count(*) FROM pg_inherits AS i WHERE i.inhrelid IN (c.oid, p.oid)) AS attached
FROM pg_partition_tree('public.log_records') AS t JOIN pg_class AS c ON c.oid = t.relid
JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_class AS p ON p.oid = t.parentrelid
WHERE t.isleaf ORDER BY 2
"""

_RANGES: Final = """
SELECT topic, partition, first_offset, to_regclass(format('log.%I', table_name))::oid FROM public.log_ranges
ORDER BY 1, 2, 3
"""

_ENDS: Final = """
(SELECT {oid}::oid, topic, partition, "offset" FROM ONLY {table} ORDER BY "offset" LIMIT 1) UNION ALL
(SELECT {oid}::oid, topic, partition, "offset" FROM ONLY {table} ORDER BY "offset" DESC LIMIT 1)
"""

_OFFSETS: Final = re.compile(r"FOR VALUES FROM \('(\d+)'\) TO \('(\d+)'\)")
_PARTITION: Final = re.compile(r"FOR VALUES FROM \('([^']+)', (\d+)\) TO \('([^']+)', (\d+)\)")


class Misplaced(NamedTuple):
    """What is wrong with where records lie: the chain, the offset from which on, and the problem in words."""

    chain: Chain
    offset: int
    problem: str


class LogTable(NamedTuple):
    """A table that readers of `log_records` read, with its bounds and those of its partition, in Postgres's text.

    `ends` are the first and the last record by offset, as they say where they belong; none in an empty table.
    """

    name: str
    bounds: str | None
    partition_bounds: str | None
    is_plain: bool = True
    attached: int = 2
    ends: tuple[tuple[Chain, int], ...] = ()

    @property
    def chain(self) -> Chain | None:
        """The chain whose partition the table is for; None where it is not for one alone.

        >>> LogTable("t", None, "FOR VALUES FROM ('t', 3) TO ('t', 4)").chain
        Chain(topic='t', partition=3)
        >>> LogTable("t", None, "FOR VALUES FROM ('t', 3) TO ('t', 9)").chain
        """
        match = _PARTITION.fullmatch(self.partition_bounds or "")
        if match is None or match[1] != match[3] or int(match[2]) + 1 != int(match[4]):
            return None
        return Chain(match[1], int(match[2]))

    @property
    def offsets(self) -> range:
        """The offsets that the table is for; none where its bounds name none.

        >>> LogTable("t", "FOR VALUES FROM ('64') TO ('128')", None).offsets
        range(64, 128)
        """
        match = _OFFSETS.fullmatch(self.bounds or "")
        return range(0) if match is None else range(int(match[1]), int(match[2]))

    def misplaced(self) -> Iterator[Misplaced]:
        """Yield what is wrong with the table itself, and its first and last record where they are of other offsets.

        A record of another partition in it is found where its rows are read.
        """
        if self.ends and (self.chain is None or not self.offsets):
            yield Misplaced(
                *self.ends[0], f"a record of this offset is in {self.name}, which is for no range of a partition"
            )
        if self.chain is None:
            return
        if not self.is_plain:
            yield Misplaced(
                self.chain, self.offsets.start, f"{self.name} is no plain table: what it shows is not stored there"
            )
        if self.attached != 2:
            yield Misplaced(
                self.chain, self.offsets.start, f"{self.name}, or its partition, is attached more than once"
            )
        for _, offset in self.ends:
            if self.offsets and offset not in self.offsets:
                yield Misplaced(
                    self.chain, offset, f"a record of this offset is in a table of other offsets, {self.name}"
                )


async def log_tables(connection: Any) -> dict[int, LogTable]:
    """Return every table that readers of the log read, by its number in Postgres, by way of an asyncpg connection."""
    rows = {row["oid"]: row for row in await connection.fetch(_TABLES)}
    oids, ends = list(rows), dict[int, list[tuple[Chain, int]]]()
    for start in range(0, len(oids), _TABLES_AT_ONCE):
        statements = (_ENDS.format(oid=oid, table=rows[oid]["name"]) for oid in oids[start : start + _TABLES_AT_ONCE])
        for oid, topic, partition, offset in await connection.fetch("UNION ALL".join(statements)):
            ends.setdefault(oid, []).append((Chain(topic, partition), offset))
    return {
        oid: LogTable(name, bounds, partition_bounds, is_plain, attached, tuple(ends.get(oid, ())))
        for oid, name, is_plain, bounds, partition_bounds, attached in rows.values()
    }


async def misplaced_ranges(connection: Any, tables: dict[int, LogTable]) -> list[Misplaced]:
    """Return what is wrong with the tables as a whole: those that are gone, exchanged, or for the same offsets."""
    found = list(_overlaps(list(tables.values())))
    for topic, partition, first, oid in await connection.fetch(_RANGES):
        chain, table = Chain(topic, partition), tables.get(oid)
        if table is None:
            gone = "the range from there on is no part of the log any more: its table was detached or dropped"
            found.append(Misplaced(chain, first, gone))
        elif (table.chain, table.offsets.start) != (chain, first):
            found.append(
                Misplaced(chain, first, f"the range from there on is {table.name}, which is for other records")
            )
    return found


def _overlaps(tables: Sequence[LogTable]) -> Iterator[Misplaced]:
    ranges = sorted((each.chain, each.offsets.start, each.offsets.stop) for each in tables if each.chain is not None)
    for (chain, _, stop), (other, start, _) in pairwise(ranges):
        if chain == other and start < stop:
            yield Misplaced(chain, start, "two tables hold the range from there on")
