"""The folds of small batches: read models' statements, prepared on a connection, and the rows that they carry as text.

A statement is prepared once for each set of its tables that has rows in some batch. The others are empty by what the
prepared statement says, and Postgres leaves out of its plan all that reads them: a fold of a few rows costs what it
takes to start the parts of its plan, and to read its parameters (docs/decisions/0067).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, NamedTuple

from projections.inline import Types, array_literal, elements, prepare_statement
from projections.read_model import FoldStatement, ReadModel
from projections.session import Session
from projections.staged_names import STAGED_EVENTS, table_of
from projections.staging import (
    CHANGE_TENANT,
    CHANGE_VERSION,
    EFFECTIVE_OFFSET,
    EVENT_TYPE,
    OFFSET,
    PARTITION,
    Changes,
    Staging,
    staged_column,
)
from schemas.polars_import import polars as pl

SETS_MAX: Final = 4
"""So many sets of tables a statement is prepared for on a connection, and then for all of its tables at once: Postgres
keeps a plan for each."""


KEPT_PLANS: Final = ("SET LOCAL plan_cache_mode = force_generic_plan", "SET LOCAL enable_seqscan = off")
"""Run before a transaction's folds: their plans are kept, and are right for tables that grow."""


class InlineRows:
    """The rows of a small batch under the names of the staging tables, as text.

    A column is written when a statement first reads it, and once.
    """

    def __init__(
        self,
        staging: Staging,
        events: Mapping[str, pl.DataFrame],
        offsets: Sequence[int],
        *,
        partition: int,
        effective_offsets: Sequence[int] | None = None,
        changes: Callable[[], Changes] | None = None,
    ) -> None:
        """Take what :meth:`Staging.frames` takes."""
        self._types = staging.types
        frames = {table_of(event_type): (event_type, frame) for event_type, frame in events.items() if frame.height}
        self._frames = {table: each for table, each in frames.items() if table in self._types}
        self._by_row: dict[str, Sequence[Any]] = {OFFSET: offsets, EFFECTIVE_OFFSET: effective_offsets or offsets}
        self._partition = partition
        self._changes = changes
        self._elements: dict[tuple[str, str], list[str]] = {}
        self._literals: dict[tuple[str, str], str] = {}

    @property
    def tables(self) -> Set[str]:
        """Names of the staging tables that have rows."""
        return self._frames.keys()

    def literal(self, table: str, name: str) -> str:
        """Return a column of a table, or of `staged_events`, as the literal of an array; empty where it has no rows."""
        if (known := self._literals.get((table, name))) is None:
            known = self._literals[table, name] = array_literal(self._written(table, name))
        return known

    def _written(self, table: str, name: str) -> list[str]:
        """Return the elements of a column's array."""
        if table == STAGED_EVENTS:
            return [element for each in self._frames for element in self._of_events(each, name)]
        if (known := self._elements.get((table, name))) is None:
            values = self._values(table, name) if table in self._frames else []
            known = self._elements[table, name] = elements(values, self._types[table][name])
        return known

    def _of_events(self, table: str, name: str) -> list[str]:
        """Return the elements that a table adds to a column of `staged_events`."""
        if name != EVENT_TYPE:
            return self._written(table, name)
        event_type, frame = self._frames[table]
        return elements([event_type], "text") * frame.height

    def _values(self, table: str, name: str) -> Sequence[Any]:
        _, frame = self._frames[table]
        if name == PARTITION:
            return [self._partition] * frame.height
        if name in {CHANGE_TENANT, CHANGE_VERSION} and name not in self._by_row:
            changes = self._changes() if self._changes else [None] * len(self._by_row[OFFSET])
            self._by_row[CHANGE_TENANT] = [change and change.tenant for change in changes]
            self._by_row[CHANGE_VERSION] = [change and change.version for change in changes]
        if (by_row := self._by_row.get(name)) is not None:
            return [by_row[row] for row in frame["row"].to_list()]
        return staged_column(name, self._types[table][name], frame).to_list()


class PreparedFold(NamedTuple):
    """A statement that is prepared on a connection: its name there, and the table and column of each parameter."""

    name: str
    parameters: Sequence[tuple[str, str]]


class InlineFolds:
    """The statements of read models on one connection that carry their rows with them: they fill no table."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._columns: dict[FoldStatement, Mapping[str, Types]] = {}
        self._prepared: dict[tuple[str, FoldStatement], dict[frozenset[str], PreparedFold]] = {}
        """By schema and statement, and by the tables that may have rows."""
        self._count = 0

    def statements(self, models: Iterable[ReadModel], rows: InlineRows) -> list[str]:
        """Return the statements of read models that have rows.

        Each is prepared at its first use. Call :meth:`prepare_again` where it is unknown what was run of them.
        """
        made = list[str]()
        for model in models:
            for statement in model.statements:
                if statement.reads.isdisjoint(rows.tables):
                    continue
                fold, preparing = self._fold(model.schema, statement, rows.tables)
                literals = ", ".join(rows.literal(table, name) for table, name in fold.parameters)
                made += [*preparing, f"EXECUTE {fold.name} ({literals})"]
        return [*KEPT_PLANS, *made] if made else []

    def prepare_again(self, session: Session) -> None:
        """Forget the prepared statements, and have the session forget them."""
        self._prepared.clear()
        self._count = 0
        session.later("DEALLOCATE ALL")

    def named_columns(self, statement: FoldStatement) -> Mapping[str, Types]:
        """Return the columns of staging tables that a statement names, by table; of each table one at least."""
        if (known := self._columns.get(statement)) is None:
            tables: dict[str, Types] = {
                table: self._staging.types[table] for table in sorted(statement.reads & statement.words)
            }
            if STAGED_EVENTS in statement.words:
                tables[STAGED_EVENTS] = self._staging.events_columns
            known = self._columns[statement] = {
                table: {name: kind for name, kind in types.items() if name in statement.words} or {OFFSET: "bigint"}
                for table, types in tables.items()
            }
        return known

    def _fold(self, schema: str, statement: FoldStatement, filled: Set[str]) -> tuple[PreparedFold, list[str]]:
        """Return a statement as it is prepared for tables that have rows, and what has to be run before."""
        prepared, tables = self._prepared.setdefault((schema, statement), {}), self.named_columns(statement)
        having = frozenset(table for table in tables if table in filled or table == STAGED_EVENTS)
        if having not in prepared and len(prepared) >= SETS_MAX:
            having = min((each for each in prepared if each > having), key=len, default=frozenset(tables))
        if having in prepared:
            return prepared[having], []
        read = {table: types for table, types in tables.items() if table in having}
        empty = {table: types for table, types in tables.items() if table not in having}
        parameters = [(table, name) for table, types in read.items() for name in types]
        fold = prepared[having] = PreparedFold(f"fold_{self._count}", parameters)
        self._count += 1
        return fold, [prepare_statement(fold.name, statement.in_schema(schema), read, empty)]
