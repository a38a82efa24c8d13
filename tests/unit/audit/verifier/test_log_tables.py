"""Where records lie: what a table is for, its first and last record, and the tables of a chain against each other."""

from __future__ import annotations

from typing import Any

import pytest

from audit.verifier import log_tables as tables_module
from audit.verifier.chain_range import Chain
from audit.verifier.log_tables import LogTable, _overlaps, log_tables

BOUNDS = "FOR VALUES FROM ('64') TO ('128')"
PARTITION_BOUNDS = "FOR VALUES FROM ('t', 3) TO ('t', 4)"
CHAIN = Chain("t", 3)


def problems(table: LogTable) -> list[tuple[int, str]]:
    return [(each.offset, each.problem) for each in table.misplaced()]


@pytest.mark.parametrize(("offset", "misplaced"), [(63, True), (64, False), (127, False), (128, True)])
def test_a_record_outside_of_its_tables_bounds_is_misplaced(offset: int, misplaced: bool) -> None:
    """The upper bound is not part of the table; an empty table is good."""
    assert problems(LogTable("x", BOUNDS, PARTITION_BOUNDS)) == []
    found = problems(LogTable("x", BOUNDS, PARTITION_BOUNDS, ends=((CHAIN, offset), (CHAIN, 64))))
    assert found == [(offset, "a record of this offset is in a table of other offsets, x")] * misplaced


@pytest.mark.parametrize(
    "bounds",
    [
        (None, PARTITION_BOUNDS),
        (BOUNDS, None),
        ("DEFAULT", PARTITION_BOUNDS),
        (BOUNDS, "FOR VALUES FROM ('t', 3) TO ('t', 5)"),
        (BOUNDS, "FOR VALUES FROM ('t', 3) TO ('u', 4)"),
        (BOUNDS, "FOR VALUES FROM ('t', MINVALUE) TO ('t', 4)"),
        ("FOR VALUES FROM ('64') TO (MAXVALUE)", PARTITION_BOUNDS),
    ],
)
def test_a_table_that_is_for_no_range_of_a_partition_may_hold_nothing(bounds: tuple[str | None, str | None]) -> None:
    """A table that takes all that no other takes is none of the log's."""
    assert problems(LogTable("x", *bounds)) == []
    (found,) = problems(LogTable("x", *bounds, ends=((CHAIN, 64), (CHAIN, 65))))
    assert found == (64, "a record of this offset is in x, which is for no range of a partition")


def test_a_table_that_is_not_where_its_rows_are_is_misplaced() -> None:
    """One that another server or a program serves, and one that is read twice."""
    assert "no plain table" in problems(LogTable("x", BOUNDS, PARTITION_BOUNDS, is_plain=False))[0][1]
    assert "more than once" in problems(LogTable("x", BOUNDS, PARTITION_BOUNDS, attached=3))[0][1]


def test_two_tables_for_the_same_offsets_are_misplaced() -> None:
    """Of one chain alone, and where one ends the next may begin."""
    later = "FOR VALUES FROM ('{}') TO ('256')"
    tables = [LogTable("x", BOUNDS, PARTITION_BOUNDS)]
    assert list(_overlaps([*tables, LogTable("y", later.format(128), PARTITION_BOUNDS)])) == []
    assert list(_overlaps([*tables, LogTable("y", BOUNDS, "FOR VALUES FROM ('t', 4) TO ('t', 5)")])) == []
    (found,) = _overlaps([*tables, LogTable("y", later.format(127), PARTITION_BOUNDS)])
    assert (found.chain, found.offset) == (CHAIN, 127)


class Row(tuple[Any, ...]):
    """A row as asyncpg has it: its values in order, and by name."""

    def __getitem__(self, name: Any) -> Any:
        return super().__getitem__(("oid", "name").index(name))


class Connection:
    """A connection to a log of tables with two records each, but for the last, which is empty."""

    def __init__(self, count: int) -> None:
        self._rows = [Row((oid, f"log.t{oid}", True, BOUNDS, PARTITION_BOUNDS, 2)) for oid in range(count)]
        self.asked: list[int] = []

    async def fetch(self, sql: str) -> list[Any]:
        if sql == tables_module._TABLES:
            return self._rows
        oids = [oid for oid in range(len(self._rows)) if f"log.t{oid} " in sql]
        self.asked.append(len(oids))
        return [(oid, "t", 3, offset) for oid in oids if oid < len(self._rows) - 1 for offset in (64, 65 + oid)]


@pytest.mark.parametrize(("count", "asked"), [(1, [1]), (2, [2]), (3, [2, 1]), (5, [2, 2, 1])])
async def test_each_table_is_read_once(monkeypatch: pytest.MonkeyPatch, count: int, asked: list[int]) -> None:
    """So many in a statement, with its bounds and its first and its last record."""
    monkeypatch.setattr(tables_module, "_TABLES_AT_ONCE", 2)
    connection = Connection(count)
    ends = [((CHAIN, 64), (CHAIN, 65 + oid)) if oid < count - 1 else () for oid in range(count)]
    assert await log_tables(connection) == {
        oid: LogTable(f"log.t{oid}", BOUNDS, PARTITION_BOUNDS, True, 2, ends[oid]) for oid in range(count)
    }
    assert connection.asked == asked
