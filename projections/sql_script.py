"""SQL files into statements."""

from __future__ import annotations


def split_statements(text: str) -> list[str]:
    """The statements of a file of plain DDL: comments stand on lines of their own, statements end with `;`.

    >>> statements("-- a; b\\nSELECT 1;\\nSELECT 2;\\n")
    ['SELECT 1', 'SELECT 2']
    """
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]
