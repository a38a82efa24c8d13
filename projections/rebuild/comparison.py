"""Comparing two builds of a read model in one snapshot, while live projection goes on.

Both have to be at the same offsets in the snapshot: as soon as both share the log's checkpoint, every snapshot has them
so.
A table's checksum is two sums over its rows of 64 bits of a hash of the row's text. A sum does not depend on the order.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from projections.read_model import ReadModel
from projections.rebuild.errors import BuildLag
from projections.session import Session

NAMED_MAX: Final = 20
"""Rows of a table that are named where builds differ."""

_APART = """
SELECT c.topic, c.partition, coalesce(a.next_offset, 0) AS first, coalesce(b.next_offset, 0) AS second
FROM checkpoints AS c
LEFT JOIN projection_checkpoints AS a
    ON a.projection || '/' || a.version = $1 AND (a.topic, a.partition) = (c.topic, c.partition)
LEFT JOIN projection_checkpoints AS b
    ON b.projection || '/' || b.version = $2 AND (b.topic, b.partition) = (c.topic, c.partition)
WHERE c.consumer = 'projector' AND coalesce(a.next_offset, 0) <> coalesce(b.next_offset, 0) ORDER BY 1, 2
"""

_DIGEST = """
SELECT count(*) AS rows, coalesce(sum(hashtextextended(row, 0)::numeric), 0)::text AS first,
       coalesce(sum(hashtextextended(row, 1)::numeric), 0)::text AS second
FROM (SELECT ROW({columns})::text AS row FROM {table}) AS texts
"""

_DIFFERENT = """
SELECT coalesce(a.key, b.key) AS key,
       CASE WHEN b.key IS NULL THEN 'missing' WHEN a.key IS NULL THEN 'added' ELSE 'changed' END AS what
FROM (SELECT ROW({key})::text AS key, ROW({columns})::text AS row FROM {first}) AS a
FULL JOIN (SELECT ROW({key})::text AS key, ROW({columns})::text AS row FROM {second}) AS b USING (key)
WHERE a.row IS DISTINCT FROM b.row ORDER BY 1 LIMIT {limit}
"""

_KEY = """
SELECT quote_ident(a.attname) AS name FROM pg_index AS i
JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = $1::text::regclass AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum)
"""


class RowMismatch(NamedTuple):
    """A row that two builds do not have alike; `key` is its primary key, as a row's text."""

    table: str
    key: str
    what: str
    """`missing` in the second build, `added` there, or `changed`."""


class ComparedTable(NamedTuple):
    """A table of two builds: rows of each, and whether they are the same."""

    table: str
    rows: int
    other_rows: int
    same: bool


class BuildComparison(NamedTuple):
    """What a comparison has found."""

    tables: list[ComparedTable]
    different: list[RowMismatch]

    @property
    def rows(self) -> int:
        """Rows that were compared."""
        return sum(max(each.rows, each.other_rows) for each in self.tables)

    @property
    def same(self) -> bool:
        """Whether the builds are equal."""
        return all(each.same for each in self.tables)


def compare(session: Session, first: ReadModel, second: ReadModel) -> BuildComparison:
    """Compare the tables of two builds in one snapshot. Raises BuildLag where they are not at the same offsets."""
    session.script(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "SET LOCAL statement_timeout = 0",
        "SET LOCAL idle_in_transaction_session_timeout = 0",
    )  # fmt: skip
    try:
        require_same_offsets(session, first, second)
        tables, different = [], []
        for name in first.tables:
            columns = ", ".join(f'"{each}"' for each in session.column_types(f"{first.schema}.{name}"))
            here, there = (_digest(session, f"{each.schema}.{name}", columns) for each in (first, second))
            tables.append(ComparedTable(name, int(here[0]), int(there[0]), here == there))
            if here != there:
                different += _different(session, first, second, name, columns)
        return BuildComparison(tables, different)
    finally:
        session.rollback()


def require_same_offsets(session: Session, first: ReadModel, second: ReadModel) -> None:
    """Raise BuildLag unless two builds are at the same offsets, as the transaction sees them."""
    apart = session.query(_APART, (first.key, second.key))
    if apart:
        topic, partition, one, other = apart[0]
        raise BuildLag(
            f"{first.key} and {second.key} are not at the same offsets.",
            why=f"On {topic}/{partition} they are at {one} and {other}: workers have to bring both to the log's end.",
            next_step="plant projections list --partitions    # then verify again",
        )


def key_columns(session: Session, table: str) -> list[str]:
    """Return the columns of a table's primary key, as SQL names them."""
    return [name for (name,) in session.query(_KEY, (table,))]


def _digest(session: Session, table: str, columns: str) -> tuple[int, str, str]:
    ((rows, one, other),) = session.query(_DIGEST.format(columns=columns, table=table))
    return rows, one, other


def _different(
    session: Session, first: ReadModel, second: ReadModel, name: str, columns: str
) -> list[RowMismatch]:  # fmt: skip
    key = ", ".join(key_columns(session, f"{first.schema}.{name}")) or columns
    sql = _DIFFERENT.format(
        key=key, columns=columns, first=f"{first.schema}.{name}", second=f"{second.schema}.{name}", limit=NAMED_MAX
    )
    return [RowMismatch(name, *row) for row in session.query(sql)]
