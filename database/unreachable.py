"""Which errors mean that a database can't be reached, and what to say about them."""

from __future__ import annotations

from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError

_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)


def driver_error(error: BaseException) -> BaseException:
    """What asyncpg raised, out of SQLAlchemy's wrapping."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def unreachable_because(error: BaseException) -> str | None:
    """One sentence on why the database can't be reached; None when the error means something else."""
    cause = driver_error(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return f"the connection was lost: {cause}."
    if isinstance(cause, asyncpg.InterfaceError) and "closed" in str(cause):
        return f"the connection was lost: {cause}."
    if isinstance(cause, asyncpg.InternalClientError) and "cannot switch to state" in str(cause):
        # The driver has read the server's farewell, and not yet that the connection is closed.
        return "the connection was lost: the server has ended the session."
    if not isinstance(cause, _LOST):
        return None
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there."
    if isinstance(cause, TimeoutError):
        return "no answer in time."
    return f"{str(cause) or type(cause).__name__}."
