"""Small frames as SQL text. A COPY costs half a millisecond however few its rows; a literal costs microseconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from typing import Any

from schemas.polars_import import polars as pl

_WITH = re.compile(
    r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*WITH\b(?P<recursive>(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*RECURSIVE\b)?",
    re.IGNORECASE | re.DOTALL,
)
"""The beginning of a statement with a WITH clause, comments and all."""

Types = Mapping[str, str]
"""Postgres types by column, in the table's order."""


def insert(table: str, columns: Mapping[str, Sequence[Any]], types: Types) -> str:
    """Return a statement that appends rows to a table, given column by column."""
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({names}) VALUES {_rows(columns, types)}"  # noqa: S608 (every value is a literal)


def subquery(table: str, frame: pl.DataFrame | None, types: Types) -> str:
    """Return a frame, or no rows, as a part of a WITH clause, with the name and the columns of a table.

    The frame's columns are the table's, in order. Within its statement the name means these rows, whatever the table
    of that name holds.
    """
    names = ", ".join(f'"{name}"' for name in types)
    if frame is None:
        nothing = ", ".join(f"NULL::{kind}" for kind in types.values())
        return f"{table} ({names}) AS (SELECT {nothing} WHERE false)"
    columns = ", ".join(f'"{name}"::{kind}' for name, kind in types.items())
    rows = _rows({column.name: column.to_list() for column in frame.iter_columns()}, types)
    return f"{table} AS (SELECT {columns} FROM (VALUES {rows}) AS v ({names}))"  # noqa: S608 (every value is a literal)


def with_subqueries(statement: str, subqueries: Iterable[str]) -> str:
    """Return a statement, with or without a WITH clause of its own, that knows more names.

    >>> with_subqueries("WITH\\nRECURSIVE b AS (SELECT 2) SELECT 1", ["a AS (SELECT 1)"])
    'WITH RECURSIVE a AS (SELECT 1), b AS (SELECT 2) SELECT 1'
    """
    own = _WITH.match(statement)
    clause = f"WITH{' RECURSIVE' if own and own['recursive'] else ''} {', '.join(subqueries)}"
    return f"{clause}, {statement[own.end() :].lstrip()}" if own else f"{clause} {statement}"


def _rows(columns: Mapping[str, Sequence[Any]], types: Types) -> str:
    literals = [_literals(values, types[name]) for name, values in columns.items()]
    return ", ".join(f"({', '.join(row)})" for row in zip(*literals, strict=True))


def _literals(values: Sequence[Any], kind: str) -> list[str]:
    render = _RENDER.get(kind, _literal)
    return ["NULL" if value is None else render(value) for value in values]


def _literal(value: Any) -> str:
    return _quoted(_text(value))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _text(value: Any) -> str:
    """Return a value in the text form that Postgres reads for its type."""
    match value:
        case bool():
            return "t" if value else "f"
        case bytes():
            return f"\\x{value.hex()}"
        case date() | time():
            return value.isoformat()
        case timedelta():
            return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
        case list() | tuple():
            return "{" + ",".join(map(_element, value)) + "}"
    return str(value)


def _element(value: Any) -> str:
    """Return an element of an array literal."""
    if value is None or isinstance(value, list | tuple):
        return "NULL" if value is None else _text(value)
    escaped = _text(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_RENDER: Mapping[str, Callable[[Any], str]] = {
    "bigint": str,
    "boolean": lambda value: "'t'" if value else "'f'",
    "bytea": lambda value: f"'\\x{value.hex()}'",
    "integer": str,
    "text": _quoted,
    "timestamp with time zone": lambda value: f"'{value.isoformat()}'",
    "uuid": lambda value: f"'{value.hex()}'",
}
"""How a value of a Postgres type is written: ids are 16 bytes, times carry their zone. These come in each batch; a
value of any other type is written as Postgres reads it."""
