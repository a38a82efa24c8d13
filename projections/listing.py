"""Listings: the questions that readers may ask of a read model, as SQL in one shape, a page at a time.

A listing is ordered by its key, so that a page begins behind the last row of the one before: rows that come or go
meanwhile move no other row to another page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["uuid", "text", "boolean", "integer", "number", "time", "day", "uuids", "integers", "texts"]

SQL_TYPES: dict[Kind, str] = {
    "uuid": "uuid",
    "text": "text",
    "boolean": "boolean",
    "integer": "bigint",
    "number": "double precision",
    "time": "timestamptz",
    "day": "date",
    "uuids": "uuid[]",
    "integers": "bigint[]",
    "texts": "text[]",
}


class ListingColumn(msgspec.Struct, frozen=True):
    """A column that readers see."""

    name: str
    kind: Kind
    meaning: str
    nullable: bool = True


class ListingFilter(msgspec.Struct, frozen=True):
    """A filter: `{}` in its condition stands for the value that a reader gives."""

    name: str
    kind: Kind
    condition: str
    meaning: str
    choices: tuple[str, ...] = ()


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a read model that readers may list.

    `source` is what stands behind FROM. `:name` in it is an argument of that name, of which `arguments` has the order.
    """

    model: str
    source: str
    columns: tuple[ListingColumn, ...]
    key: tuple[str, ...]
    filters: tuple[ListingFilter, ...] = ()
    arguments: tuple[str, ...] = ()

    def kind_of(self, column: str) -> Kind:
        """Return the kind of a column."""
        return next(each.kind for each in self.columns if each.name == column)

    def page(self, filters: Sequence[str], *, after: bool) -> str:
        """Return the statement of a page: the arguments, a value a filter, the key behind which it begins, the limit.

        >>> agents = Listing(
        ...     model="agents", source="read_models.agents", columns=(ListingColumn("agent_id", "uuid", ""),),
        ...     key=("agent_id",), filters=(ListingFilter("status", "text", "status = {}", ""),))
        >>> print(agents.page(["status"], after=True))
        SELECT agent_id FROM read_models.agents
        WHERE status = $1::text AND (agent_id) > ($2::uuid)
        ORDER BY agent_id LIMIT $3::bigint
        """
        number = len(self.arguments)
        conditions = []
        by_name = {each.name: each for each in self.filters}
        for name in filters:
            number += 1
            conditions.append(by_name[name].condition.format(f"${number}::{SQL_TYPES[by_name[name].kind]}"))
        if after:
            values = [f"${number + at}::{SQL_TYPES[self.kind_of(name)]}" for at, name in enumerate(self.key, start=1)]
            number += len(values)
            conditions.append(f"({', '.join(self.key)}) > ({', '.join(values)})")
        where = f"\nWHERE {' AND '.join(conditions)}" if conditions else ""
        return f"{self._select()}{where}\nORDER BY {', '.join(self.key)} LIMIT ${number + 1}::bigint"

    def one(self) -> str:
        """Return the statement of one row: the arguments, then its key."""
        begin = len(self.arguments) + 1
        values = [f"{name} = ${at}::{SQL_TYPES[self.kind_of(name)]}" for at, name in enumerate(self.key, start=begin)]
        return f"{self._select()}\nWHERE {' AND '.join(values)}"

    def _select(self) -> str:
        names = ", ".join(each.name for each in self.columns)
        return f"SELECT {names} FROM {positional(self.source, self.arguments)}"  # noqa: S608 (text of a read model)


def positional(statement: str, names: Sequence[str]) -> str:
    """Return a statement whose named arguments are numbered, as asyncpg has them.

    >>> positional("SELECT :day::date - :days", ["day", "days"])
    'SELECT $1::date - $2'
    """
    return re.sub(r"(?<!:):([a-z_]+)", lambda word: f"${names.index(word[1]) + 1}", statement)
