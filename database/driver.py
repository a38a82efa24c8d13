"""asyncpg's connection as Plant uses it: a transaction begins in one round trip, before SQLAlchemy asks for one.

By hand, since SQLAlchemy 2.1 begins a transaction at the first statement, with a `BEGIN` of asyncpg's own: the reset of
the session and the tenant would cost further round trips. Here the pool begins the transaction in one script, and
SQLAlchemy, when it asks for a transaction, gets the one that is open. Both use the same transaction, so a commit or a
rollback through SQLAlchemy takes effect.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import asyncpg

from database.errors import TransactionAborted, TransactionEnded
from database.statement_log import StatementLog

Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

BEGIN_TIMEOUT_SECONDS: Final = 10
"""How long a server may take to begin a transaction before its connection counts as lost."""

_CLEAN: Final = "RESET ALL; CLOSE ALL; DISCARD TEMP"


class DriverConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg comes without types
    """A connection with the transaction of one block of the pool, or with none."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.made_at = time.monotonic()
        self.in_block = False
        self.used_by_sqlalchemy = False
        """Whether the block has run a statement through SQLAlchemy, which has a state of its own then."""
        self.statements: StatementLog | None = None

    async def begin(self, script: str) -> None:
        """Begin the block's transaction with the script that :func:`beginning` made."""
        await self.execute(script, timeout=BEGIN_TIMEOUT_SECONDS)
        self.in_block, self.used_by_sqlalchemy = True, False

    async def rows(self, statement: str, arguments: Sequence[object]) -> list[Any]:
        """Return the rows of a statement in asyncpg's own form, past SQLAlchemy: a third of its time.

        Raises as a statement through SQLAlchemy does.
        """
        started = time.perf_counter()
        try:
            found: list[Any] = await self.fetch(statement, *arguments)
        except Exception as error:
            translated = self.statements.translate(error) if self.statements is not None else None
            if translated is not None:
                raise translated from error
            raise
        if self.statements is not None:
            self.statements.note(statement, time.perf_counter() - started)
        return found

    async def commit(self) -> None:
        """Commit, unless that or a rollback was done through SQLAlchemy.

        Raises TransactionAborted where the server rolls back instead, since a statement before had failed.
        """
        if self._is_over():
            return
        if await self.execute("COMMIT") == "ROLLBACK":
            raise TransactionAborted

    async def rollback(self) -> None:
        """Roll back, if there is something to."""
        if not self._is_over():
            await self.execute("ROLLBACK")

    def transaction(self, **_: object) -> _Transaction:
        """Return the open transaction: SQLAlchemy calls this before a statement, where it knows of none."""
        self.used_by_sqlalchemy = True
        return _Transaction(self)

    def _is_over(self) -> bool:
        # A closed connection does not know how its transaction ended; using it says that it is closed.
        return not self.is_closed() and not self.is_in_transaction()


class _Transaction:
    """The connection's transaction, as SQLAlchemy's dialect handles it."""

    def __init__(self, connection: DriverConnection) -> None:
        self._connection = connection

    async def start(self) -> None:
        connection = self._connection
        if connection.is_closed() or not connection.is_in_transaction():
            if connection.in_block:
                raise TransactionEnded
            await connection.execute("BEGIN")

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        if not self._connection.is_closed():
            await self._connection.rollback()


def beginning(tenant: str | None, isolation: Isolation, read_only: bool) -> str:
    """Return the script that begins a transaction: one round trip.

    The tenant is always set, if to nothing. Settings, cursors and temporary tables that a block before left in the
    session are gone: they would show its rows to a block of another tenant.

    >>> beginning("o'clock", "READ COMMITTED", True).split("; ")  # doctest: +NORMALIZE_WHITESPACE
    ['BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY', 'RESET ALL', 'CLOSE ALL', 'DISCARD TEMP',
     "SELECT set_config('plant.governance_agent_id', 'o''clock', true)"]

    Raises ValueError for an empty tenant, which would mean none, and for one that Postgres's text can't hold.
    """
    if tenant == "":
        raise ValueError("a tenant must not be empty")
    if "\x00" in (tenant or ""):
        raise ValueError("a tenant holds no NUL")
    mode = f"{isolation} READ ONLY" if read_only else isolation
    # Backslashes are text: every session is made with standard_conforming_strings on.
    quoted = (tenant or "").replace("'", "''")
    return f"BEGIN ISOLATION LEVEL {mode}; {_CLEAN}; SELECT set_config('plant.governance_agent_id', '{quoted}', true)"
