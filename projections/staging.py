"""The staging tables of one connection: `staged.sql`, and the frames that go into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from projections.inline import subquery, with_subqueries
from projections.session import Session
from projections.sql_script import split_statements
from schemas.polars_import import polars as pl

_EVENT_IDS = "CREATE TEMPORARY TABLE staged_event_ids (event_id uuid) ON COMMIT DELETE ROWS"

# The log's own tables stand with the staging tables: small batches are written as text, which needs the types.
_COLUMNS = """
SELECT c.relname::text AS "table", a.attname::text AS "column", format_type(a.atttypid, a.atttypmod) AS "type"
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE (c.relnamespace = pg_my_temp_schema() AND c.relname LIKE 'staged\\_%'
       OR c.oid IN ('event_stream'::regclass, 'audit_log'::regclass))
  AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, a.attnum
"""


def table_of(event_type: str) -> str:
    """The staging table of an event type: `genesis.agent.onboarded` waits in `staged_agent_onboarded`."""
    return "staged_" + event_type.partition(".")[2].replace(".", "_")


class Staging:
    """Which event types are staged on a connection, and in which columns.

    Read models find a batch's rows under the names of the staging tables: in the tables, once :meth:`fill` has copied
    them there, or in a statement's own WITH clause from :meth:`inline`, which is cheaper for a few rows.
    """

    def __init__(self) -> None:
        self.types: dict[str, dict[str, str]] = {}
        """Postgres types by table and column: of the staging tables and of the log's."""

    def open(self, session: Session) -> None:
        """Create the staging tables on a fresh connection."""
        session.later(_EVENT_IDS)
        session.later(*split_statements((files("projections") / "staged.sql").read_text(encoding="utf-8")))
        self.types = {}
        for table, column, kind in session.query(_COLUMNS):
            self.types.setdefault(table, {})[column] = kind

    def fill(self, session: Session, events: Mapping[str, pl.DataFrame], offsets: Sequence[int]) -> frozenset[str]:
        """Copy decoded events to their staging tables; returns the tables that have rows now.

        `events` holds frames with a `row` column, an index into `offsets`. Types without a table are left out.
        """
        staged = self._staged(events, offsets)
        for table, frame in staged.items():
            session.copy(table, frame, temporary=True)
        return frozenset(staged)

    def inline(
        self, statement: str, reads: frozenset[str], events: Mapping[str, pl.DataFrame], offsets: Sequence[int]
    ) -> str | None:
        """A read model's statement that carries its rows with it; None when it would have none. Fills no table."""
        staged = self._staged(events, offsets)
        if not reads & staged.keys():
            return None
        return with_subqueries(statement, [subquery(table, staged.get(table), self.types[table]) for table in reads])

    def _staged(self, events: Mapping[str, pl.DataFrame], offsets: Sequence[int]) -> dict[str, pl.DataFrame]:
        staged = {}
        for event_type, frame in events.items():
            table = table_of(event_type)
            types = self.types.get(table)
            if types is None or not frame.height:
                continue
            place = pl.Series("offset", [offsets[row] for row in frame["row"]], dtype=pl.Int64)
            staged[table] = pl.DataFrame([place if name == "offset" else _column(name, frame) for name in types])
        return staged


def _column(name: str, frame: pl.DataFrame) -> pl.Series:
    """A staged column: `agent__name` is field `name` of the record `agent`."""
    record, _, field = name.partition("__")
    column = frame[record]
    if field and column.dtype == pl.Struct:
        column = column.struct.field(field)
    if column.dtype == pl.List(pl.Binary):
        column = frame.select(_array_literal(pl.lit(column))).to_series()
    return column.alias(name)


def _array_literal(ids: pl.Expr) -> pl.Expr:
    """An array of ids as a Postgres array literal, in hex without dashes.

    COPY would give bytea[], which has no cast to uuid[]; casting text costs a third of converting each element in SQL.
    """
    return pl.format("{{{}}}", ids.list.eval(pl.element().bin.encode("hex")).list.join(","))
