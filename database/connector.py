"""Connections to Postgres: one pool for each process and role, transactions, retries, and the check of rights."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from database.driver import Isolation
from database.errors import DatabaseUnreachable, DatabaseUnwritable, TooContended, TooMuchPrivilege, TransactionConflict
from database.pool import Pool, driver_of
from database.privileges import TOO_MUCH
from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import DatabaseRole, Settings

log = get_logger(__name__)

ATTEMPTS: Final = 5
BACKOFF_SECONDS: Final = 0.02
BACKOFF_MAX_SECONDS: Final = 1.0
REPLICA_PAUSE_SECONDS: Final = 5.0
CLOSE_TIMEOUT_SECONDS: Final = 10.0

Result = TypeVar("Result")


class Database:
    """A role's connections. Made by :func:`connect`; close it when done. Connects when it is first used.

    Every session has a statement, a lock and an idle-in-transaction timeout. A transaction sees and writes the rows of
    the tenant that it names, and without a name no row that has one.

    All methods that run a transaction raise DatabaseUnreachable, PoolExhausted, DatabaseClosed; and, already at the
    statement, StatementTimedOut, LockTimedOut, ConstraintRefused, ValueRefused, RowRefused, TransactionConflict. None
    of these shows a value. What else the driver raises comes out as it is.
    """

    def __init__(self, pool: Pool, replica: Pool | None = None) -> None:
        self._pool = pool
        self._replica = replica
        self._replica_again_at = 0.0

    @property
    def role(self) -> DatabaseRole:
        """The role of Plant's as which it connects."""
        return self._pool.role

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine. It knows of no tenant and of no queue of waiters: use `transaction`."""
        return self._pool.engine

    def transaction(
        self,
        tenant: str | None = None,
        *,
        isolation: Isolation = "READ COMMITTED",
        read_only: bool = False,
        replica: bool = False,
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """Return a connection in a transaction: committed when the block ends, rolled back when it raises.

        `begin_nested` on it makes a savepoint, after whose failure the block may go on; where it goes on after any
        other failed statement, its end raises TransactionAborted. After `commit` or `rollback` on it the block can do
        no more: TransactionEnded.

        With `replica` the block only reads, and may read slightly stale rows: it goes to the read replica, if there is
        one and it answers. A replica can't do SERIALIZABLE, so that goes to the primary.
        """
        read_only = read_only or replica
        if replica and isolation != "SERIALIZABLE" and (pool := self._replica_to_try()) is not None:
            return self._on_replica(pool, tenant, isolation)
        return self._pool.transaction(tenant, isolation, read_only=read_only)

    @asynccontextmanager
    async def session(
        self,
        tenant: str | None = None,
        *,
        isolation: Isolation = "READ COMMITTED",
        read_only: bool = False,
        replica: bool = False,
    ) -> AsyncIterator[AsyncSession]:
        """Yield a session for mapped classes in a transaction: flushed and committed when the block ends, not before.

        `commit` on the session only flushes; `rollback` undoes all of the block. Objects can be read afterwards.
        """
        async with self.transaction(tenant, isolation=isolation, read_only=read_only, replica=replica) as connection:
            await connection.begin()  # So the session knows that the transaction is not its own.
            async with AsyncSession(
                connection, expire_on_commit=False, join_transaction_mode="rollback_only"
            ) as session:
                yield session
                await session.flush()

    async def run(
        self,
        work: Callable[[AsyncConnection], Awaitable[Result]],
        tenant: str | None = None,
        *,
        isolation: Isolation = "READ COMMITTED",
        attempts: int = ATTEMPTS,
    ) -> Result:
        """Return the result of `work`, in a transaction that is committed.

        After a serialization failure or a deadlock, `work` is called again in a fresh transaction, after a pause that
        doubles and is jittered, so it must do nothing that a rollback does not undo. Raises TooContended after
        `attempts` calls.
        """

        async def once() -> Result:
            async with self.transaction(tenant, isolation=isolation) as connection:
                return await work(connection)

        return await self._again_after_conflicts(once, attempts)

    async def run_session(
        self,
        work: Callable[[AsyncSession], Awaitable[Result]],
        tenant: str | None = None,
        *,
        isolation: Isolation = "READ COMMITTED",
        attempts: int = ATTEMPTS,
    ) -> Result:
        """Return the result of work on mapped classes, as `run` does; each call of `work` gets a session of its own."""

        async def once() -> Result:
            async with self.session(tenant, isolation=isolation) as session:
                return await work(session)

        return await self._again_after_conflicts(once, attempts)

    async def require_writable(self, tenant: str | None = None) -> None:
        """Raise DatabaseUnwritable where nothing could be stored: a standby, or an administrator's setting."""
        async with self.transaction(tenant) as connection:
            if (await connection.execute(text("SHOW transaction_read_only"))).scalar_one() == "on":
                raise DatabaseUnwritable(why="Its transactions are read-only.")

    async def assert_least_privilege(self) -> None:
        """Refuse to serve with rights that would let a fault in Plant rewrite its own log.

        Raises TooMuchPrivilege when this session is, or can become through a role it is a member of: a superuser, a
        role with BYPASSRLS or other rights over the server, or the owner of this database or of any table in it.
        """
        async with self.transaction() as connection:
            why = (await connection.execute(text(TOO_MUCH))).scalar_one_or_none()
        if why is not None:
            raise TooMuchPrivilege(
                f"Plant does not serve as {self._pool.where}.",
                why=why,
                next_step=f"export PLANT_DATABASE_{self.role.upper()}_URL=postgresql://plant_{self.role}:…@host/plant",
            )

    async def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Refuse new transactions, wait for those that run, and close every connection.

        A transaction that still runs after `timeout_seconds` is ended: it is rolled back, and raises DatabaseClosed.
        """
        pools = [pool for pool in (self._pool, self._replica) if pool is not None]
        for pool in pools:
            pool.refuse()
        await asyncio.gather(*(pool.close(timeout_seconds) for pool in pools))

    async def _again_after_conflicts(self, once: Callable[[], Awaitable[Result]], attempts: int) -> Result:
        for attempt in range(1, attempts + 1):
            try:
                return await once()
            except TransactionConflict as error:
                metrics.DATABASE_RETRIES.labels(self.role, error.reason).inc()
                if attempt == attempts:
                    raise TooContended(
                        why=f"{attempts} attempts failed; the last one: {error.why}", next_step="plant doctor"
                    ) from error
                await asyncio.sleep(backoff_seconds(attempt))
        raise ValueError("attempts must be at least 1")

    def _replica_to_try(self) -> Pool | None:
        """Return the replica's pool, unless it did not answer a moment ago; after the pause one caller tries again."""
        if self._replica is None or not self._replica_again_at:
            return self._replica
        if time.monotonic() < self._replica_again_at:
            return None
        self._replica_again_at = time.monotonic() + REPLICA_PAUSE_SECONDS
        return self._replica

    @asynccontextmanager
    async def _on_replica(
        self, replica: Pool, tenant: str | None, isolation: Isolation
    ) -> AsyncIterator[AsyncConnection]:
        """Yield a transaction on the replica, or on the primary if the replica can't begin one."""
        async with AsyncExitStack() as stack:
            try:
                transaction = replica.transaction(tenant, isolation, read_only=True)
                connection = await stack.enter_async_context(transaction)
                self._replica_again_at = 0.0
            except DatabaseUnreachable as error:
                self._replica_again_at = time.monotonic() + REPLICA_PAUSE_SECONDS
                log.warning("replica.unreachable", role=self.role, why=error.why)
                transaction = self._pool.transaction(tenant, isolation, read_only=True)
                connection = await stack.enter_async_context(transaction)
            yield connection


def connect(settings: Settings, role: DatabaseRole) -> Database:
    """Return the database as `plant_<role>`, not connected yet. Raises ConfigurationError without a good address."""
    pool = Pool(settings, role, settings.database_address(role))
    address = settings.database_api_replica_url if role == "api" else ""
    return Database(pool, Pool(settings, role, address) if address else None)


async def fetch_rows(connection: AsyncConnection, statement: str, *arguments: object) -> list[Any]:
    """Return the rows of a statement with `$1`, `$2`, … on a transaction's connection, in asyncpg's own form.

    For hot reads: what SQLAlchemy adds to a row takes longer than the row. Raises as its statements do.
    """
    return await driver_of(connection).rows(statement, arguments)


def backoff_seconds(attempt: int) -> float:
    """Return how long to wait after the attempt of this number, from 1: full jitter under a bound that doubles.

    After https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/.
    """
    return random.uniform(0, min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2**attempt))  # noqa: S311 (no secret)
