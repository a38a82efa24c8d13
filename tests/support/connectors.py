"""Connectors for tests, with settings of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from database.connector import Database, connect
from runtime.settings import Settings


@asynccontextmanager
async def connected(url: str, **settings: object) -> AsyncIterator[Database]:
    """Yield a connector that reaches `url` as its writer."""
    database = connect(Settings(database_writer_url=url, **settings), "writer")  # type: ignore[arg-type]
    try:
        yield database
    finally:
        await database.close()
