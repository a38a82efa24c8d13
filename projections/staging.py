"""The staging tables of one connection: made from the event structs, one for each type that a read model reads.

A batch is decoded once, and each read model's apply.sql reads it under the names of these tables. A table has the
offset and those fields of its event that some statement names, and the partition and the effective offset where one
names these, and `change_tenant` and `change_version` where one names either: the tenant and the version of the change
in the database that the event tells of, null where it tells of none (docs/how-to/direct-changes.md). `agent__name` is
the field `name` of the nested record `agent`. Lists of ids come as array literals, which
the statement casts to uuid[]; other lists are arrays. A list of records has no column. `staged_events` has the events
of every type (see projections/staged_names.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import NamedTuple

import msgspec
from msgspec import inspect as types

from projections.constant_column import constant_column
from projections.read_model import FoldStatement, ReadModel
from projections.session import Session
from projections.staged_names import STAGED_EVENTS, table_of
from schemas.events import EVENT_TYPES
from schemas.polars_import import polars as pl
from schemas.sender_headers import ChangedVersion

OFFSET = "offset"
PARTITION = "partition"
EVENT_TYPE = "event_type"
EFFECTIVE_OFFSET = "effective_offset"
"""The offset at which a row takes effect: its own, or that of the control record that releases it."""
CHANGE_TENANT = "change_tenant"
CHANGE_VERSION = "change_version"
_CHANGE_COLUMNS: Mapping[str, str] = {CHANGE_TENANT: "text", CHANGE_VERSION: "bigint"}

LISTS_ONE_BY_ONE_MAX = 100
"""So many lists cost less one by one than in a query of polars."""

Changes = Sequence[ChangedVersion | None]
"""The change in the database that each row tells of; None where it tells of none."""

_EVENTS_COLUMNS: Mapping[str, str] = {
    OFFSET: "bigint",
    PARTITION: "bigint",
    EVENT_TYPE: "text",
    "occurred_at": "timestamp with time zone",
}
"""The columns of `staged_events`."""

ARRAY_LITERAL = "text"
"""The type of a list of ids: COPY would give bytea[], which has no cast to uuid[]."""

_POSTGRES_TYPES: Mapping[type[types.Type], str] = {
    types.BoolType: "boolean",
    types.BytesType: "bytea",
    types.DateTimeType: "timestamp with time zone",
    types.FloatType: "double precision",
    types.IntType: "bigint",
    types.LiteralType: "text",
    types.StrType: "text",
    types.UUIDType: "uuid",
}
"""Every type of which `schemas/generation.py` makes Avro, lists and records apart."""


class StagedColumn(NamedTuple):
    """A column of a staging table, with its Postgres type."""

    name: str
    type: str
    required: bool


def staged_columns(struct: type[msgspec.Struct], record: str = "", *, required: bool = True) -> Iterator[StagedColumn]:
    """Yield the columns of an event struct's fields, in their order; fields of a nested record are prefixed."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        kind, optional = _plain_type(field.type)
        name = record + field.name
        if isinstance(kind, types.StructType):
            yield from staged_columns(kind.cls, f"{name}__", required=required and not optional)
        elif (postgres_type := _postgres_type(kind)) is not None:
            yield StagedColumn(name, postgres_type, required and not optional)


def _postgres_type(kind: types.Type) -> str | None:
    """Return the Postgres type of a field's values; None where there is none."""
    if not isinstance(kind, types.VarTupleType):
        return _POSTGRES_TYPES.get(type(kind))
    item, _ = _plain_type(kind.item_type)
    if isinstance(item, types.UUIDType):
        return ARRAY_LITERAL
    name = _POSTGRES_TYPES.get(type(item))
    return name and f"{name}[]"


def _plain_type(kind: types.Type) -> tuple[types.Type, bool]:
    """Return a field's type without its limits, and whether it may be null."""
    if isinstance(kind, types.Metadata):
        return _plain_type(kind.type)
    if isinstance(kind, types.UnionType):
        (inner,) = (each for each in kind.types if not isinstance(each, types.NoneType))
        return _plain_type(inner)[0], True
    return kind, False


def staging_tables(models: Sequence[ReadModel]) -> dict[str, list[StagedColumn]]:
    """Return the columns of each staging table that a model reads: the offset, and those that statements name."""
    tables = {}
    for event_type, struct in EVENT_TYPES.items():
        table = table_of(event_type)
        words: set[str] = set().union(*(_words(statement, table) for statement in _statements(models)))
        if words:
            columns = [column for column in _columns_of(struct) if column.name in words]
            own = [
                StagedColumn(name, "bigint", required=True)
                for name in (OFFSET, PARTITION, EFFECTIVE_OFFSET)
                if name in {OFFSET, *words}
            ]
            if not words.isdisjoint(_CHANGE_COLUMNS):
                own += [StagedColumn(name, kind, required=False) for name, kind in _CHANGE_COLUMNS.items()]
            tables[table] = [*own, *columns]
    return tables


@cache
def _columns_of(struct: type[msgspec.Struct]) -> tuple[StagedColumn, ...]:
    """Return the columns of an event struct; reading them from its types takes a millisecond."""
    return tuple(staged_columns(struct))


def _statements(models: Iterable[ReadModel]) -> list[FoldStatement]:
    return [statement for model in models for statement in model.statements]


def _words(statement: FoldStatement, table: str) -> Set[str]:
    """Return the words that name columns of a table: those of `staged_events` where it reads that alone."""
    if table in statement.words:
        of_events = _events_columns([statement]).keys() if STAGED_EVENTS in statement.words else set()
        return statement.words | of_events
    return _events_columns([statement]).keys() if table in statement.reads else set()


def _events_columns(statements: Iterable[FoldStatement]) -> Mapping[str, str]:
    """Return the columns of `staged_events`: with the effective offset where a statement that reads it names that."""
    effective = any({STAGED_EVENTS, EFFECTIVE_OFFSET} <= statement.words for statement in statements)
    return {**_EVENTS_COLUMNS, EFFECTIVE_OFFSET: "bigint"} if effective else _EVENTS_COLUMNS


class Staging:
    """The staging tables of the read models on one connection.

    Read models read a batch's rows under the names of the staging tables: in the tables, once :meth:`fill` has copied
    them there, or in a statement's own WITH clause (projections/inline_folds.py), which is cheaper for a few rows.
    `types` has the columns of each table, `events_columns` those of `staged_events`.
    """

    def __init__(self, models: Sequence[ReadModel]) -> None:
        self._tables = staging_tables(models)
        statements = _statements(models)
        self._has_events = any(STAGED_EVENTS in statement.words for statement in statements)
        self.events_columns = _events_columns(statements)
        self.types = {table: {each.name: each.type for each in columns} for table, columns in self._tables.items()}

    def has_changes(self, tables: Set[str]) -> bool:
        """Return whether one of these tables has columns for the changes that events tell of."""
        return any(CHANGE_VERSION in self.types.get(table, {}) for table in tables)

    @property
    def names(self) -> Set[str]:
        """Names of the staging tables."""
        return self._tables.keys()

    def open(self, session: Session) -> None:
        """Create the staging tables on a fresh connection."""
        for table, columns in self._tables.items():
            ddl = ", ".join(f'"{name}" {kind}{" NOT NULL" if required else ""}' for name, kind, required in columns)
            session.later(f"CREATE TEMPORARY TABLE {table} ({ddl}) ON COMMIT DELETE ROWS")
        if self._has_events:
            session.later(f"CREATE TEMPORARY VIEW {STAGED_EVENTS} AS {every_event(self.events_columns)}")

    def frames(
        self,
        events: Mapping[str, pl.DataFrame],
        offsets: Sequence[int],
        tables: Set[str] | None = None,
        *,
        partition: int,
        effective_offsets: Sequence[int] | None = None,
        changes: Callable[[], Changes] | None = None,
    ) -> dict[str, pl.DataFrame]:
        """Return the rows of each staging table that has some; of these tables alone where they are named.

        `events` holds decoded frames with a `row` column, an index into `offsets`, into `effective_offsets`, which are
        the same unless they are passed, and into what `changes` returns. That is asked once, and only where a table has
        columns for it. Types without a table are left out.
        """
        wanted = self.types.keys() if tables is None else tables
        every_offset, staged = pl.Series(OFFSET, offsets, dtype=pl.Int64), {}
        every_change: list[pl.Series] = []
        for event_type, frame in events.items():
            table = table_of(event_type)
            if table not in wanted or not frame.height:
                continue
            types, own = self.types[table], {OFFSET: every_offset[frame["row"]]}
            if PARTITION in types:
                own[PARTITION] = constant_column(PARTITION, partition, pl.Int64, frame.height)
            if EFFECTIVE_OFFSET in types:
                effective = pl.Series(EFFECTIVE_OFFSET, effective_offsets or offsets, dtype=pl.Int64)
                own[EFFECTIVE_OFFSET] = effective[frame["row"]]
            if CHANGE_VERSION in types:
                every_change = every_change or _change_columns(changes() if changes else [None] * len(offsets))
                own |= {each.name: each[frame["row"]] for each in every_change}
            columns = [own[name] if name in own else staged_column(name, kind, frame) for name, kind in types.items()]
            staged[table] = pl.DataFrame(columns)
        return staged

    def fill(self, session: Session, frames: Mapping[str, pl.DataFrame]) -> None:
        """Copy rows to their staging tables, where they stay until the transaction ends."""
        for table, frame in frames.items():
            session.copy(table, frame, temporary=True)


def every_event(columns: Iterable[str] = tuple(_EVENTS_COLUMNS)) -> str:
    """Return the query behind `staged_events`."""
    names = ", ".join("{} AS event_type" if name == EVENT_TYPE else f'"{name}"' for name in columns)
    queries = (f"SELECT {names} FROM {table_of(event_type)}" for event_type in EVENT_TYPES)  # noqa: S608 (names of ours)
    return " UNION ALL ".join(
        query.format(f"'{event_type}'") for query, event_type in zip(queries, EVENT_TYPES, strict=True)
    )


def _change_columns(changes: Changes) -> list[pl.Series]:
    return [
        pl.Series(CHANGE_TENANT, [change and change.tenant for change in changes], dtype=pl.String),
        pl.Series(CHANGE_VERSION, [change and change.version for change in changes], dtype=pl.Int64),
    ]


def staged_column(name: str, kind: str, frame: pl.DataFrame) -> pl.Series:
    """Return a staged column: `agent__name` is field `name` of the record `agent`."""
    record, *fields = name.split("__")
    column = frame[record]
    for field in fields:
        if column.dtype == pl.Struct:
            column = column.struct.field(field)
    if kind == ARRAY_LITERAL and column.dtype == pl.List(pl.Binary):
        column = _array_literals(column)
    return column.alias(name)


def _array_literals(lists: pl.Series) -> pl.Series:
    """Return lists of ids as Postgres array literals, in hex without dashes.

    Casting text costs a third of converting each element in SQL.
    """
    if len(lists) <= LISTS_ONE_BY_ONE_MAX:
        texts = [None if ids is None else f"{{{','.join(map(_hex, ids))}}}" for ids in lists.to_list()]
        return pl.Series(texts, dtype=pl.String)
    ids = pl.lit(lists).list.eval(pl.element().bin.encode("hex").fill_null("NULL"))
    return pl.select(pl.format("{{{}}}", ids.list.join(","))).to_series()


def _hex(value: bytes | None) -> str:
    return "NULL" if value is None else value.hex()
