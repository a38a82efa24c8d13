"""The relay's own session in Postgres: its lock, the hints of changes, the outbox and the poison rows.

The connection is direct: through a pooler in transaction mode neither the lock nor LISTEN would be the session's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg

from database.address import connect_arguments, shown
from database.error_translation import sentence, translate_error
from database.errors import DatabaseUnreachable, SchemaBehind
from database.sessions import DRIVER_ERRORS, close_connection
from database.sqlstates import RETRYABLE, is_one_of
from projections.poison_rows import PoisonRows
from relay.outbox import Outbox
from runtime.logging import get_logger
from runtime.settings import Settings

log = get_logger(__name__)

CHANNEL: Final = "plant_outbox"
LOCK: Final = 0x504C414E5452  # "PLANTR"
UNRESPONSIVE_TIMEOUT_SECONDS: Final = 20
"""A holder of the lock that has sent no statement for so long is frozen: it sends one at least every few seconds."""
STATEMENT_TIMEOUT_SECONDS: Final = 10
ANSWER_TIMEOUT_SECONDS: Final = 15.0

SESSION: Final = {
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
    "lock_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
    # A client whose machine is gone: the server ends its session, and so frees the lock, within these.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    # A cycle is to read its own page of the index. Where statistics say that few rows wait, the planner would read and
    # sort all of them; and statistics lag behind a backlog.
    "enable_sort": "off",
}

END_UNRESPONSIVE_HOLDER: Final = """
SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = $1
  AND a.usename = session_user AND a.state_change < clock_timestamp() - make_interval(secs => $2)
"""
"""A process that is stopped keeps its connection, and with it the lock, for as long as its machine runs."""


class RelaySession:
    """One session. Every method raises DatabaseUnreachable when the session is lost, or may work later on.

    A schema without the outbox is SchemaBehind.
    """

    def __init__(self, connection: Any, where: str) -> None:
        self._connection = connection
        self._where = where
        self.outbox = Outbox(connection)
        self.poison_rows = PoisonRows(connection)

    @property
    def lost(self) -> bool:
        """Whether the session is known to have ended, and with it the lock."""
        closed: bool = self._connection.is_closed()
        return closed

    async def try_lock(self) -> bool:
        """Return whether this session now holds the lock; it does until it ends or unlocks."""
        with named_errors(self._where):
            locked: bool = await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK)
        return locked

    async def unlock(self) -> None:
        """Release the lock."""
        with named_errors(self._where):
            await self._connection.execute(f"SELECT pg_advisory_unlock({LOCK})")

    async def end_unresponsive_holder(self, timeout_seconds: float = UNRESPONSIVE_TIMEOUT_SECONDS) -> bool:
        """End the session that holds the lock if it has sent no statement for so long; return whether there was one."""
        with named_errors(self._where):
            ended: bool | None = await self._connection.fetchval(END_UNRESPONSIVE_HOLDER, LOCK, timeout_seconds)
        return bool(ended)

    async def listen(self, hint: Callable[[], None]) -> None:
        """Call `hint` whenever a change was committed, and when the session ends."""
        self._connection.add_termination_listener(lambda _: hint())
        with named_errors(self._where):
            await self._connection.add_listener(CHANNEL, lambda *_: hint())

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Raise the driver's errors inside as Plant's own."""
        with named_errors(self._where):
            yield

    async def close(self) -> None:
        """End the session, without waiting long for an unresponsive server."""
        await close_connection(self._connection)


@asynccontextmanager
async def relay_session(settings: Settings) -> AsyncIterator[RelaySession]:
    """Yield a session as `plant_writer`. Raises DatabaseUnreachable, and ConfigurationError for an address."""
    address = settings.database_address("writer")
    arguments = connect_arguments(
        address, application_name="plant relay", answer_timeout_seconds=ANSWER_TIMEOUT_SECONDS, **SESSION
    )
    where = shown(address)
    with named_errors(where):
        connection = await asyncpg.connect(**arguments)
    session = RelaySession(connection, where)
    try:
        yield session
    finally:
        await asyncio.shield(session.close())


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Raise the driver's errors inside as Plant's own; `where` is the address without secrets."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if is_one_of(getattr(error, "sqlstate", None), RETRYABLE):
            message = sentence(error)
            raise DatabaseUnreachable(why=f"{where}: {message}", next_step="plant status") from error
        if isinstance(error, asyncpg.UndefinedTableError):
            raise SchemaBehind(why="It has no outbox.", next_step="plant db upgrade") from error
        raise translate_error(error, where) or error from error
