"""Repairing the build that readers see: rows that differ from those of a rebuild are merged into it, and no others.

What differs is found in one snapshot, while live projection goes on, and its keys are kept in the session. Then so many
rows a transaction are taken over as they are at that moment: no worker has a transaction under way, and both builds are
at the same offsets, so what the rebuild has is right. A repair that is killed leaves whole transactions, and the next
one finds what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from projections.read_model import ReadModel
from projections.rebuild.comparison import NAMED_MAX, RowMismatch, key_columns, require_same_offsets
from projections.rebuild.errors import BuildLag, RebuildRefused
from projections.session import Session, TableLocked

MERGED_ROWS: Final = 1_000
"""Rows that are merged in one transaction, for which workers wait."""

PAUSE_SECONDS: Final = 0.1

# Each worker locks its partition's row first, so none has written anything that is not committed.
_HOLD_WORKERS: Final = (
    "SET LOCAL lock_timeout = '2s'",
    "SELECT FROM partition_owners WHERE consumer = 'projector' ORDER BY topic, partition FOR UPDATE",
)

_DIFFERENT: Final = """
CREATE TEMPORARY TABLE {keys} AS
SELECT row_number() OVER (ORDER BY {key}) AS number, {key}, ROW({key})::text AS named,
       CASE WHEN b.kept IS NULL THEN 'added' WHEN a.kept IS NULL THEN 'missing' ELSE 'changed' END AS what
FROM (SELECT {key}, true AS kept, ROW({columns})::text AS texts FROM {first}) AS a
FULL JOIN (SELECT {key}, true AS kept, ROW({columns})::text AS texts FROM {second}) AS b USING ({key})
WHERE a.texts IS DISTINCT FROM b.texts
"""

_COUNTS: Final = "SELECT what, count(*) AS n FROM {keys} GROUP BY what"
_NAMED: Final = f"SELECT named, what FROM {{keys}} ORDER BY number LIMIT {NAMED_MAX}"  # noqa: S608 (a number)

_DELETE: Final = """
DELETE FROM {first} USING {keys} AS k WHERE k.number BETWEEN {least} AND {most} AND {same}
AND NOT EXISTS (SELECT FROM {second} AS b WHERE {same_there})
"""

_UPSERT: Final = """
INSERT INTO {first} ({columns}) SELECT {columns_there} FROM {second} AS b JOIN {keys} AS k ON {same_there}
WHERE k.number BETWEEN {least} AND {most} ORDER BY k.number
ON CONFLICT ({key}) DO {update}
"""


class TableMismatch(NamedTuple):
    """The rows of a table that the build that readers see does not have as the rebuild has them."""

    table: str
    changed: int
    missing: int
    added: int
    named: list[RowMismatch]
    """The first of them; `missing` and `added` in the build that readers see."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.changed + self.missing + self.added


class BuildRepair:
    """The repair of a build by the rebuild beside it; `find` comes before `merge`."""

    def __init__(self, session: Session, live: ReadModel, rebuild: ReadModel) -> None:
        self._session = session
        self._live = live
        self._rebuild = rebuild
        self.found: list[TableMismatch] = []

    def find(self) -> None:
        """Find the rows that differ, in one snapshot. Raises BuildLag where the builds are not at the same offsets."""
        session = self._session
        session.script(
            "BEGIN ISOLATION LEVEL REPEATABLE READ", "SET LOCAL statement_timeout = 0",
            "SET LOCAL idle_in_transaction_session_timeout = 0",
        )  # fmt: skip
        try:
            require_same_offsets(session, self._live, self._rebuild)
            self.found = [self._find(name) for name in self._live.tables]
        except BaseException:
            session.rollback()
            raise
        session.commit()

    def _find(self, name: str) -> TableMismatch:
        names = self._names(name)
        self._session.execute(f"DROP TABLE IF EXISTS {names['keys']}")
        self._session.execute(_DIFFERENT.format(**names))
        counts = dict(self._session.query(_COUNTS.format(**names)))
        named = [RowMismatch(name, *row) for row in self._session.query(_NAMED.format(**names))]
        changed, missing, added = (counts.get(what, 0) for what in ("changed", "missing", "added"))
        return TableMismatch(name, changed, missing, added, named)

    def merge(self, advance: Callable[[int], None], wait_seconds: float) -> None:
        """Take the rows over, some at a time. Raises BuildLag where builds stay at other offsets for too long."""
        for each in self.found:
            for least in range(1, each.rows + 1, MERGED_ROWS):
                most = min(least + MERGED_ROWS - 1, each.rows)
                self._merge(self._statements(each.table, least, most), wait_seconds)
                advance(most - least + 1)

    def _merge(self, statements: Sequence[str], wait_seconds: float) -> None:
        session, deadline = self._session, time.monotonic() + wait_seconds
        while True:
            try:
                session.begin()
                session.script(*_HOLD_WORKERS)
                require_same_offsets(session, self._live, self._rebuild)
                session.script(*statements, "COMMIT")
                return
            except (BuildLag, TableLocked):
                session.rollback()
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_SECONDS)

    def _statements(self, name: str, least: int, most: int) -> list[str]:
        names = self._names(name) | {"least": str(least), "most": str(most)}
        return [_DELETE.format(**names), _UPSERT.format(**names)]

    def _names(self, name: str) -> dict[str, str]:
        first, second = (f"{each.schema}.{name}" for each in (self._live, self._rebuild))
        columns = [f'"{each}"' for each in self._session.column_types(first)]
        if not (key := key_columns(self._session, first)):
            raise RebuildRefused(
                f"{first} can't be repaired.", why="It has no primary key, so its rows can't be told apart.",
                next_step=f"plant projections swap {self._live.name_of_model}",
            )  # fmt: skip
        others = [each for each in columns if each.strip('"') not in {each.strip('"') for each in key}]
        return {
            "first": first, "second": second, "keys": f"pg_temp.repair_{name}", "key": ", ".join(key),
            "columns": ", ".join(columns), "columns_there": ", ".join(f"b.{each}" for each in columns),
            "same": " AND ".join(f"{first}.{each} = k.{each}" for each in key),
            "same_there": " AND ".join(f"b.{each} = k.{each}" for each in key),
            "update": f"UPDATE SET {', '.join(f'{each} = excluded.{each}' for each in others)}" if others else "NOTHING"
        }  # fmt: skip
