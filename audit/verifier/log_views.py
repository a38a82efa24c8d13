"""What readers of the log query: the views `event_stream` and `audit_log`, and the function that one of them calls."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final

# The views' definitions and the function's text. With the schema of the table in each, whatever the search path.
_DEFINITIONS: Final = """
SELECT c.relname::text, CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END
FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace AND c.relname IN ('event_stream', 'audit_log')
UNION ALL
SELECT p.proname::text, concat_ws(' ', p.prosecdef, p.proconfig, p.prosrc)
FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace AND p.proname = 'hash_before'
"""

_HIDING: Final = """
SELECT relname::text FROM pg_class WHERE oid IN ('public.log_records'::regclass, 'public.log_ranges'::regclass)
    AND relrowsecurity ORDER BY 1
"""

DIGESTS: Final = {
    "audit_log": "4f0b9c895f3ebcaea61e652a6e47f7e75f78adba13e7e8c6272c348c33a01dde",
    "event_stream": "1accfd69f21207e6ff2750941b3d9349add74a502036858a6d42e8246124e30d",
    "hash_before": "6c3ccd5a11144e1b4b88af605e18d5ff5c6e3862653771b1ba8776a8f5f48c78",
}
"""SHA-256 of each definition, as :func:`digest` takes it; a migration that changes one changes its digest here."""


def digest(definition: str) -> str:
    """Return the SHA-256 of a definition in hex. White space, and a table before a column, are not part of it.

    Postgres 15 writes the table before each column of a view, later ones do not.

    >>> digest("SELECT log_records.topic\\n FROM x;") == digest("SELECT topic FROM x;")
    True
    """
    plain = re.sub(r"\blog_records\.", "", definition)
    return hashlib.sha256(" ".join(plain.split()).encode()).hexdigest()


def altered(definitions: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return the names that are missing, stand for something else, or are there twice; sorted.

    >>> altered([]) == sorted(DIGESTS)
    True
    """
    found: dict[str, list[str]] = {}
    for name, definition in definitions:
        found.setdefault(name, []).append("" if definition is None else digest(definition))
    return [name for name in sorted(DIGESTS) if found.get(name) != [DIGESTS[name]]]


async def altered_views(connection: Any) -> list[str]:
    """Return the names of views that do not show the log as it is stored, and of tables with policies on their rows."""
    definitions = [(name, text) for name, text in await connection.fetch(_DEFINITIONS)]
    return [*altered(definitions), *(name for (name,) in await connection.fetch(_HIDING))]
