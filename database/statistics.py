"""The planner's statistics after a load of our own: autovacuum comes within a minute, and plans are made before."""

from __future__ import annotations

from collections.abc import Iterable


def refresh_statement(tables: Iterable[str]) -> str:
    """Return the statement by which plant_writer has tables of ours analysed; it waits for nobody.

    >>> refresh_statement(["skills", "agents_v1.agents"])
    "SELECT refresh_statistics(ARRAY['skills', 'agents_v1.agents']::regclass[])"
    """
    names = ", ".join(f"'{table}'" for table in tables)
    return f"SELECT refresh_statistics(ARRAY[{names}]::regclass[])"
