"""Connectors for tests, with settings of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from database.connector import Database, connect
from runtime.settings import Settings

TIMEOUT_SECONDS = 180.0


@asynccontextmanager
async def connected(url: str, **settings: object) -> AsyncIterator[Database]:
    """Yield a connector that reaches `url` as its writer."""
    database = connect(Settings(database_writer_url=url, **settings), "writer")  # type: ignore[arg-type]
    try:
        yield database
    finally:
        await database.close()


async def until(condition: Callable[[], Awaitable[bool] | bool], what: str) -> None:
    """Return when the condition holds; fail after a deadline."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
    while True:
        found = condition()
        if found is True or (not isinstance(found, bool) and await found):
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {TIMEOUT_SECONDS:.0f} s: {what}"
        await asyncio.sleep(0.02)
