"""A connection of its own, outside of the pool: for a session that listens, or holds a lock, as long as it lives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import asyncpg

from database.address import connect_arguments, shown
from database.error_translation import translate_error
from database.errors import DatabaseUnreachable

CLOSE_TIMEOUT_SECONDS: Final = 2.0

DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # The driver has read the message that the server shuts down, and not yet that the connection is closed (seen).
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What asyncpg raises."""


@contextlib.asynccontextmanager
async def single_connection(
    address: str, *, application_name: str, answer_timeout_seconds: float
) -> AsyncIterator[Any]:
    """Yield a new connection, and close it. The driver's errors are raised as Plant's own, those inside too."""
    with translated_errors(address):
        connection = await asyncpg.connect(
            **connect_arguments(
                address, application_name=application_name, answer_timeout_seconds=answer_timeout_seconds
            )
        )
        try:
            yield connection
        finally:
            await asyncio.shield(close_connection(connection))


@contextlib.contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Raise the driver's errors inside as Plant's own; what has none of its own is DatabaseUnreachable."""
    try:
        yield
    except DRIVER_ERRORS as error:
        where = shown(address)
        raise translate_error(error, where) or DatabaseUnreachable(why=f"{where}: {error}") from error


async def close_connection(connection: Any) -> None:
    """Close a connection, by force where it does not answer."""
    try:
        await connection.close(timeout=CLOSE_TIMEOUT_SECONDS)
    except DRIVER_ERRORS:
        connection.terminate()
