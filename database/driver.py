"""asyncpg's connection as Plant uses it: a transaction begins in one round trip, before SQLAlchemy asks for one.

SQLAlchemy begins a transaction when the first statement comes, and has no place for what else a beginning needs: that
costs round trips. Here the pool begins it, and when SQLAlchemy asks for a transaction it is given the one that is
open. So both know of the same transaction, and what commits or rolls back through SQLAlchemy really does.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

import asyncpg

from database.errors import TransactionAborted, TransactionEnded

Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

BEGIN_SECONDS: Final = 10
"""How long a server may take to begin a transaction before its connection counts as lost."""

_CLEAN: Final = "RESET ALL; CLOSE ALL; DISCARD TEMP"


class DriverConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg comes without types
    """A connection on which a block of the pool's has a transaction, or nobody has."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.made_at = time.monotonic()
        self.in_block = False

    async def begin(self, script: str) -> None:
        """Begin the block's transaction with what :func:`beginning` gave."""
        await self.execute(script, timeout=BEGIN_SECONDS)
        self.in_block = True

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
        """What SQLAlchemy calls before a statement, where it knows of no transaction."""
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


def beginning(governance_agent_id: str | None, isolation: Isolation, read_only: bool) -> str:
    """What a transaction begins with: one script, one round trip.

    The boundary is always set, if to nothing. Settings, cursors and temporary tables that a block before left in the
    session are gone: they would show what it saw to a block in another boundary.

    >>> beginning("o'clock", "READ COMMITTED", True).split("; ")  # doctest: +NORMALIZE_WHITESPACE
    ['BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY', 'RESET ALL', 'CLOSE ALL', 'DISCARD TEMP',
     "SELECT set_config('plant.governance_agent_id', 'o''clock', true)"]

    Raises ValueError for an empty id, which would mean nothing, and for one that Postgres's text can't hold.
    """
    if governance_agent_id == "":
        raise ValueError("a governance agent's id must not be empty")
    if "\x00" in (governance_agent_id or ""):
        raise ValueError("a governance agent's id holds no NUL")
    mode = f"{isolation} READ ONLY" if read_only else isolation
    # Backslashes are text: every session is made with standard_conforming_strings on.
    quoted = (governance_agent_id or "").replace("'", "''")
    return f"BEGIN ISOLATION LEVEL {mode}; {_CLEAN}; SELECT set_config('plant.governance_agent_id', '{quoted}', true)"
