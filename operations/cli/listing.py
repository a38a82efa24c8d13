"""Listings: `--output table|json|jsonl` for every command that prints rows.

Texts of senders are among them. Characters that a terminal would obey, or that part lines, are printed as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import click
import msgspec

from runtime.process import escaped

_UNSAFE_IN_JSON: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
"""C1 controls, ends of lines, changes of direction: JSON takes them as they are, and escapes those of C0 itself."""

Output = Literal["table", "json", "jsonl"]

output_option = click.option(
    "--output",
    type=click.Choice(["table", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="How to print: for people, or for programs.",
)


def show(rows: Sequence[Mapping[str, Any]], output: Output, *, columns: Sequence[str] | None = None) -> None:
    """Print rows to stdout. `columns` picks and orders what a table shows; JSON always holds every field."""
    if output == "json":
        click.echo(_escaped_json(msgspec.json.format(msgspec.json.encode(rows), indent=2)))
    elif output == "jsonl":
        for row in rows:
            click.echo(_escaped_json(msgspec.json.encode(row)))
    elif rows:
        _show_table(rows, columns or list(rows[0]))


def _escaped_json(document: bytes) -> str:
    """Return the text of a JSON document, which means the same and moves no terminal."""
    return _UNSAFE_IN_JSON.sub(lambda unsafe: f"\\u{ord(unsafe[0]):04x}", document.decode())


def _show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print plain aligned columns, which a terminal shows well and standard tools cut well."""
    heads = [column.replace("_", " ") for column in columns]
    cells = [[_shown(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in [heads, *cells]) for at in range(len(columns))]
    click.secho(_line(heads, widths), bold=True)
    for line in cells:
        click.echo(_line(line, widths))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return escaped(f"{value:,.1f}" if isinstance(value, float) else str(value))


class RowPrinter:
    """Prints rows as they come, so that none has to be kept: a JSON array too. A table has columns of fixed widths."""

    def __init__(self, output: Output, widths: Mapping[str, int]) -> None:
        """`widths` picks and orders what a table shows; a longer cell moves those after it."""
        self._output = output
        self._widths = widths
        self._count = 0

    def row(self, row: Mapping[str, Any]) -> None:
        """Print a row."""
        if self._output == "table":
            if not self._count:
                heads = [column.replace("_", " ") for column in self._widths]
                click.secho(_line(heads, list(self._widths.values())), bold=True)
            click.echo(_line([_shown(row[column]) for column in self._widths], list(self._widths.values())))
        elif self._output == "jsonl":
            show([row], "jsonl")
        else:
            click.echo(f"{',' if self._count else '['}\n{_escaped_json(msgspec.json.encode(row))}", nl=False)
        self._count += 1

    def finish(self) -> None:
        """End a JSON array. Call it once, behind the last row."""
        if self._output == "json":
            click.echo("\n]" if self._count else "[]")
