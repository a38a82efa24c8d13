"""Statements run from plain, synchronous code, whether or not an event loop is running around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import asyncpg

CONNECT_PATIENCE_SECONDS = 5.0
Result = TypeVar("Result")


def run(url: str, statements: Sequence[str]) -> None:
    """Run each statement in a transaction of its own."""

    async def work(connection: Any) -> None:
        for statement in statements:
            await connection.execute(statement)

    _with_connection(url, work)


def value(url: str, query: str) -> Any:
    """The first column of the first row; None where there is no row."""
    return _with_connection(url, lambda connection: connection.fetchval(query))


def answers(url: str) -> bool:
    """Whether a server at this address answers a query."""
    try:
        return bool(value(url, "SELECT 1") == 1)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False


def literal(text: str) -> str:
    """Quote text for statements that take no parameters."""
    if "\0" in text:
        raise ValueError("Postgres text holds no NUL")
    return "'" + text.replace("'", "''") + "'"


def _with_connection(url: str, work: Callable[[Any], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        connection = await asyncpg.connect(url, timeout=CONNECT_PATIENCE_SECONDS)
        try:
            return await work(connection)
        finally:
            await connection.close()

    # A thread of its own: the caller may be inside a running loop (tests are).
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, main()).result()
