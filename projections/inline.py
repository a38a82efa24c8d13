"""Small frames as SQL text. A COPY costs half a millisecond however few its rows; a literal costs microseconds.

Rows of the log are literals of an INSERT. Those of a read model are parameters of its statements, which are prepared on
each connection: planning takes as long as running what a small batch needs (docs/decisions/0034).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from typing import Any

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


def prepare_statement(
    name: str, statement: str, tables: Mapping[str, Types], empty: Mapping[str, Types] | None = None
) -> str:
    """Return a statement that prepares another, which then means its parameters by the names of tables.

    A column is a parameter: an array (:func:`array_literal`), in the order of the tables and of their columns. An array
    in it is text. The tables that are `empty` have no parameters, and Postgres leaves what reads them out of the plan.
    """
    kinds, subqueries = list[str](), [empty_subquery(table, types) for table, types in (empty or {}).items()]
    for table, types in tables.items():
        subqueries.append(subquery(table, types, len(kinds) + 1))
        kinds += ["text[]" if kind.endswith("[]") else f"{kind}[]" for kind in types.values()]
    return f"PREPARE {name} ({', '.join(kinds)}) AS {with_subqueries(statement, subqueries)}"


def subquery(table: str, types: Types, first: int = 1) -> str:
    """Return rows as a part of a WITH clause, with the name and the columns of a table.

    They come as parameters that are numbered from `first` on. Within its statement the name means these rows, whatever
    the table of that name holds.

    >>> subquery("a", {"b": "bigint", "c": "text[]"}, first=3)
    'a AS (SELECT "b"::bigint, "c"::text[] FROM unnest($3, $4) AS v ("b", "c"))'
    """
    names = ", ".join(f'"{name}"' for name in types)
    columns = ", ".join(f'"{name}"::{kind}' for name, kind in types.items())
    parameters = ", ".join(f"${number}" for number, _ in enumerate(types, first))
    return f"{table} AS (SELECT {columns} FROM unnest({parameters}) AS v ({names}))"  # noqa: S608 (names of ours)


def empty_subquery(table: str, types: Types) -> str:
    """Return a part of a WITH clause that has the name and the columns of a table, and no rows.

    Postgres sees that while it plans, where it may read the part's query in place of its name.

    >>> empty_subquery("a", {"b": "bigint", "c": "text[]"})
    'a AS NOT MATERIALIZED (SELECT NULL::bigint AS "b", NULL::text[] AS "c" WHERE false)'
    """
    columns = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in types.items())
    return f"{table} AS NOT MATERIALIZED (SELECT {columns} WHERE false)"


def elements(values: Sequence[Any], kind: str) -> list[str]:
    """Return a column's values as elements of :func:`array_literal`."""
    render = _BARE.get(kind, _whole if kind.endswith("[]") else _element)
    return ["NULL" if value is None else render(value) for value in values]


def array_literal(written: Iterable[str]) -> str:
    """Return the literal of an array of elements.

    >>> print(array_literal(elements(["it's", None], "text")))
    '{"it''s",NULL}'
    """
    return _quoted("{" + ",".join(written) + "}")


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


def _whole(value: Any) -> str:
    """Return an array as one element of text."""
    return _element(_text(value))


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


_BARE: Mapping[str, Callable[[Any], str]] = {
    "bigint": str,
    "boolean": lambda value: "t" if value else "f",
    "timestamp with time zone": lambda value: value.isoformat(),
    "uuid": lambda value: value.hex(),
}
"""How a value of a Postgres type is written where it needs no quotes, as in an array: ids are 16 bytes, times carry
their zone."""


def _in_quotes(render: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: f"'{render(value)}'"


_RENDER: Mapping[str, Callable[[Any], str]] = {
    **{kind: _in_quotes(render) for kind, render in _BARE.items()},
    "bigint": str,
    "bytea": lambda value: f"'\\x{value.hex()}'",
    "integer": str,
    "text": _quoted,
}
"""How it is written as a literal. These come in each batch; one of any other type is written as Postgres reads it."""
