"""The staging tables of one connection: `staged.sql`, and the frames that go into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from projections.session import Session
from projections.statements import statements
from schemas.columns import polars as pl

_EVENT_IDS = "CREATE TEMPORARY TABLE staged_event_ids (event_id uuid) ON COMMIT DELETE ROWS"

_COLUMNS = """
SELECT c.relname::text, a.attname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = pg_my_temp_schema() AND c.relname LIKE 'staged\\_%' AND a.attnum > 0 ORDER BY c.relname, a.attnum
"""


def table_of(event_type: str) -> str:
    """The staging table of an event type: `genesis.agent.onboarded` waits in `staged_agent_onboarded`."""
    return "staged_" + event_type.partition(".")[2].replace(".", "_")


class Staging:
    """Which event types are staged on a connection, and in which columns."""

    def __init__(self) -> None:
        self._columns: dict[str, list[str]] = {}

    def open(self, session: Session) -> None:
        """Create the staging tables on a fresh connection."""
        session.execute(_EVENT_IDS)
        for statement in statements((files("projections") / "staged.sql").read_text(encoding="utf-8")):
            session.execute(statement)
        self._columns = {}
        for table, column in session.query(_COLUMNS):
            self._columns.setdefault(table, []).append(column)

    def fill(self, session: Session, events: Mapping[str, pl.DataFrame], offsets: Sequence[int]) -> frozenset[str]:
        """Copy decoded events to their staging tables; returns the tables that have rows now.

        `events` holds frames with a `row` column, an index into `offsets`. Types without a table are left out.
        """
        staged = set()
        for event_type, frame in events.items():
            table = table_of(event_type)
            columns = self._columns.get(table)
            if columns is None or not frame.height:
                continue
            place = pl.Series("offset", [offsets[row] for row in frame["row"]], dtype=pl.Int64)
            placed = frame.clone().insert_column(0, place)
            chosen = placed.select(_column(name, placed.schema) for name in columns)
            session.copy(table, chosen, temporary=True)
            staged.add(table)
        return frozenset(staged)


def _column(name: str, schema: pl.Schema) -> pl.Expr:
    """A staged column: `agent__name` is field `name` of the record `agent`."""
    record, _, field = name.partition("__")
    kind: pl.DataType | None = schema[record]
    if field and isinstance(kind, pl.Struct):
        kind = next((part.dtype for part in kind.fields if part.name == field), None)  # type: ignore[assignment]
    column = pl.col(record).struct.field(field).alias(name) if field else pl.col(name)
    return _array_literal(column).alias(name) if kind == pl.List(pl.Binary) else column


def _array_literal(ids: pl.Expr) -> pl.Expr:
    """An array of ids as a Postgres array literal, in hex without dashes.

    COPY would give bytea[], which has no cast to uuid[]; casting text costs a third of converting each element in SQL.
    """
    return pl.format("{{{}}}", ids.list.eval(pl.element().bin.encode("hex")).list.join(","))
