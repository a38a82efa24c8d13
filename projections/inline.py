"""Small frames as SQL text. A COPY costs half a millisecond however few its rows; a literal costs microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from schemas.polars_import import polars as pl

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
    """Return a statement, with or without a WITH clause of its own, that knows more names."""
    first, _, rest = statement.partition(" ")
    clause = f"WITH {', '.join(subqueries)}"
    return f"{clause}, {rest}" if first.upper() == "WITH" else f"{clause} {statement}"


def _rows(columns: Mapping[str, Sequence[Any]], types: Types) -> str:
    literals = [_literals(values, types[name]) for name, values in columns.items()]
    return ", ".join(f"({', '.join(row)})" for row in zip(*literals, strict=True))


def _literals(values: Sequence[Any], kind: str) -> list[str]:
    render = _RENDER[kind]
    return ["NULL" if value is None else render(value) for value in values]


_RENDER: Mapping[str, Callable[[Any], str]] = {
    "bigint": str,
    "boolean": lambda value: "'t'" if value else "'f'",
    "bytea": lambda value: f"'\\x{value.hex()}'",
    "integer": str,
    "text": lambda value: "'" + value.replace("'", "''") + "'",
    "timestamp with time zone": lambda value: f"'{value.isoformat()}'",
    "uuid": lambda value: f"'{value.hex()}'",
}
"""How a value of a Postgres type is written: ids are 16 bytes, times carry their zone."""
