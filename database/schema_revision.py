"""Whether the database is at the revision that this version of Plant needs.

Services ask at each start. Alembic, which would load every migration for it, takes as much processor time to import as
half of a service.
"""

from __future__ import annotations

import ast
import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import asyncpg

from database.address import connect_arguments, shown
from database.error_translation import translate_unreachable
from database.errors import SchemaBehind

_VERSIONS: Final = Path(__file__).parent / "migrations" / "versions"
_REVISIONS: Final = re.compile(r"^(down_revision|revision) = (.+)$", re.MULTILINE)
_CURRENT: Final = "SELECT version_num FROM alembic_version"


def require_current_schema(url: str) -> None:
    """Return when the database is at :func:`needed_revisions`; raise SchemaBehind when it isn't. Any role may ask."""
    with ThreadPoolExecutor(1, "plant schema") as pool:  # this thread may have an event loop already
        actual = pool.submit(lambda: asyncio.run(_revisions(url))).result()
    needed = needed_revisions()
    if actual != needed:
        raise SchemaBehind(
            why=f"It is at {', '.join(actual) or 'no revision'}; {', '.join(needed)} is needed.",
            next_step="plant db upgrade",
        )


def needed_revisions() -> tuple[str, ...]:
    """Return the revisions of the migrations that no other one comes after, sorted; `migrate.heads` finds the same."""
    made, followed = set[str](), set[str]()
    for file in _VERSIONS.glob("*.py"):
        named = {name: ast.literal_eval(value) for name, value in _REVISIONS.findall(file.read_text("utf-8"))}
        made.add(named["revision"])
        before = named["down_revision"]
        followed.update((before,) if isinstance(before, str) else before or ())
    return tuple(sorted(made - followed))


async def _revisions(url: str) -> tuple[str, ...]:
    try:
        connection = await asyncpg.connect(**connect_arguments(url, application_name="plant schema"))
        try:
            return tuple(sorted(row["version_num"] for row in await connection.fetch(_CURRENT)))
        except asyncpg.UndefinedTableError:
            return ()
        finally:
            await connection.close()
    except Exception as error:
        if unreachable := translate_unreachable(error, shown(url)):
            raise unreachable from error
        raise
