"""Statements run from plain, synchronous code, whether or not an event loop is running around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

LOGIN_TIMEOUT_SECONDS = 120.0
PROBE_TIMEOUT_SECONDS = 5.0
"""For the question whether a server answers: one that has stopped must not hold up who asks."""
Result = TypeVar("Result")


def execute(url: str, statements: Sequence[str]) -> None:
    """Run each statement in a transaction of its own."""

    async def work(connection: Any) -> None:
        for statement in statements:
            await connection.execute(statement)

    run_on(url, work)


def value(url: str, query: str) -> Any:
    """Return the first column of the first row; None where there is no row."""
    return run_on(url, lambda connection: connection.fetchval(query))


def server_answers(url: str) -> bool:
    """Tell whether a server at this address answers a query."""
    try:
        probe = run_on(url, lambda connection: connection.fetchval("SELECT 1"), PROBE_TIMEOUT_SECONDS)
        return bool(probe == 1)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False


def literal(text: str) -> str:
    """Quote text for statements that take no parameters."""
    if "\0" in text:
        raise ValueError("Postgres text holds no NUL")
    return "'" + text.replace("'", "''") + "'"


def _tls(url: str) -> bool | None:
    """Return False for a server on this machine, ours, which has no TLS: asyncpg then looks for no keys at home."""
    return False if urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1") else None


def run_on(
    url: str, work: Callable[[Any], Awaitable[Result]], timeout_seconds: float = LOGIN_TIMEOUT_SECONDS
) -> Result:
    """Run work on a connection of its own, and return what it returns."""

    async def main() -> Result:
        connection = await asyncpg.connect(url, timeout=timeout_seconds, ssl=_tls(url))
        try:
            return await work(connection)
        finally:
            await connection.close()

    # A thread of its own: the caller may be inside a running loop (tests are).
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, main()).result()
