"""A bounded pool of connections to one server, and transactions on them in few round trips.

A transaction costs one round trip to begin, with its row-level context, and one to commit. The first one is also the
ping: nothing was done before it, so a dead connection is replaced without an error.

By hand, since SQLAlchemy's pool pings in a round trip of its own (`pool_pre_ping`), serves waiters out of order, and
has no close that waits for transactions.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection

from database.address import shown
from database.driver import DriverConnection, Isolation, beginning
from database.engine import make_engine
from database.error_translation import translate_error, translate_unreachable
from database.errors import DatabaseClosed, DatabaseUnreachable, PoolExhausted
from runtime import metrics
from runtime.logging import get_logger
from runtime.settings import DatabaseRole, Settings

log = get_logger(__name__)

ROLLBACK_TIMEOUT_SECONDS: Final = 5.0

GRACEFUL_CLOSE_TIMEOUT_SECONDS: Final = 2.0
"""How long a graceful close of a pool's idle connections may take."""


class Pool:
    """Connections to one server as one role. Waiters are served in the order in which they came."""

    def __init__(self, settings: Settings, role: DatabaseRole, address: str) -> None:
        self.role: DatabaseRole = role
        self.where = shown(address)
        self._size = settings.database_pool_size
        self._wait_seconds = settings.database_pool_wait_seconds
        # SQLAlchemy's own queue lets the task that has just returned a connection take it again before those that wait.
        self._gate = asyncio.Semaphore(self._size)
        self._closed = False
        self._ended_after_seconds: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_use = 0
        self._begun_on: set[DriverConnection] = set()
        self._distrusted_before = 0.0
        self._recycle_seconds = settings.database_pool_recycle_seconds
        self._untouched: list[tuple[Connection, DriverConnection]] = []
        """Idle connections of blocks that went past SQLAlchemy, whose checking out and in takes longer than a read."""
        self._clean_ups: set[asyncio.Task[None]] = set()
        self.engine, self._statements = make_engine(settings, role, address)
        self._made: weakref.WeakSet[DriverConnection] = weakref.WeakSet()
        event.listen(self.engine.sync_engine, "connect", lambda made, _: self._made.add(made.driver_connection))
        self._in_use_gauge = metrics.DATABASE_CONNECTIONS_IN_USE.labels(role)
        self._waiting_gauge = metrics.DATABASE_POOL_WAITING.labels(role)
        self._wait_histogram = metrics.DATABASE_POOL_WAIT_SECONDS.labels(role)

    @asynccontextmanager
    async def transaction(
        self, tenant: str | None, isolation: Isolation, *, read_only: bool
    ) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction: committed when the block ends, rolled back when it fails."""
        script = beginning(tenant, isolation, read_only)
        await self._acquire_slot()
        try:
            connection, driver = await self._begun(script)
        except BaseException:
            self._release_slot()
            raise
        try:
            yield connection
            await self._commit(driver)
        except BaseException as error:
            await self._finish(self._abandon(connection, driver))
            if self._ended_after_seconds is not None and isinstance(error, DatabaseUnreachable):
                why = f"The transaction had not ended {self._ended_after_seconds} s after the process began to close."
                raise DatabaseClosed(why=why, next_step="plant doctor") from error
            raise
        await self._check_in(connection, driver)

    def refuse(self) -> None:
        """Take no more transactions from now on; tasks that wait for a connection are refused too."""
        self._closed = True

    async def close(self, timeout_seconds: float) -> None:
        """Wait for the transactions that run, then end those that still do, and close every connection."""
        self.refuse()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("database.closed_in_use", role=self.role, transactions=self._in_use)
            self._ended_after_seconds = timeout_seconds
            for driver in self._begun_on:
                driver.terminate()
        await self._close_idle()

    async def _close_idle(self) -> None:
        """Close the connections gracefully; abort them when the server is unresponsive."""
        try:
            async with asyncio.timeout(GRACEFUL_CLOSE_TIMEOUT_SECONDS):
                while self._untouched:
                    await AsyncConnection(self.engine, self._untouched.pop()[0]).close()
                await self.engine.dispose()
        except TimeoutError:
            log.warning("database.unresponsive_at_close", role=self.role, connections=len(self._made))
            for driver in list(self._made):
                driver.terminate()
            await self.engine.dispose()

    async def _acquire_slot(self) -> None:
        """Acquire one of the pool's slots, in the order of the callers."""
        started = time.perf_counter()
        if self._closed:
            raise DatabaseClosed(why=f"{self.where} is being closed.", next_step="plant status")
        if self._gate.locked():
            await self._wait_for_slot()
        else:
            await self._gate.acquire()
        self._wait_histogram.observe(time.perf_counter() - started)
        self._in_use += 1
        self._in_use_gauge.inc()
        self._idle.clear()

    async def _wait_for_slot(self) -> None:
        self._waiting_gauge.inc()
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._gate.acquire()
        except TimeoutError as error:
            metrics.DATABASE_POOL_TIMEOUTS.labels(self.role).inc()
            raise PoolExhausted(
                why=f"All {self._size} connections of plant_{self.role} were in use for {self._wait_seconds} s.",
                next_step="export PLANT_DATABASE_POOL_SIZE=…",
            ) from error
        finally:
            self._waiting_gauge.dec()
        if self._closed:
            self._gate.release()
            raise DatabaseClosed(why=f"{self.where} is being closed.", next_step="plant status")

    def _release_slot(self) -> None:
        self._in_use -= 1
        self._in_use_gauge.dec()
        if not self._in_use:
            self._idle.set()
        self._gate.release()

    async def _begun(self, script: str) -> tuple[AsyncConnection, DriverConnection]:
        """Return a connection on which the transaction has begun; skip dead ones, as many as the pool may hold."""
        with self._translated_errors():
            for left in range(self._size, -1, -1):
                connection, driver = await self._checked_out()
                try:
                    if driver.made_at >= self._distrusted_before:
                        driver.statements = self._statements
                        await driver.begin(script)
                        self._begun_on.add(driver)
                        return connection, driver
                except BaseException as error:
                    await self._finish(_discard(connection, driver))
                    if not left or not isinstance(error, Exception) or translate_unreachable(error, self.where) is None:
                        raise
                    if isinstance(error, TimeoutError):
                        # All connections to an unresponsive server are: don't wait for each.
                        self._distrusted_before = time.monotonic()
                else:
                    await self._finish(_discard(connection, driver))
        raise AssertionError("the last attempt returns or raises")

    async def _checked_out(self) -> tuple[AsyncConnection, DriverConnection]:
        if self._untouched:
            connection, driver = self._untouched.pop()
            return AsyncConnection(self.engine, connection), driver
        made = await self.engine.connect()
        return made, driver_of(made)

    async def _commit(self, driver: DriverConnection) -> None:
        started = time.perf_counter()
        with self._translated_errors():
            await driver.commit()
        self._statements.note("COMMIT", time.perf_counter() - started)

    async def _check_in(self, connection: AsyncConnection, driver: DriverConnection) -> None:
        driver.in_block = False
        self._begun_on.discard(driver)
        try:
            if not self._kept_untouched(connection, driver):
                await connection.close()
        finally:
            self._release_slot()

    def _kept_untouched(self, connection: AsyncConnection, driver: DriverConnection) -> bool:
        """Keep a connection that no block has used through SQLAlchemy, for the next one; return whether it was kept.

        The block's own object is of no use afterwards, as one that was closed.
        """
        own = connection.sync_connection
        if own is None or driver.used_by_sqlalchemy or driver.is_closed() or own.closed or own.invalidated:
            return False
        if own.get_transaction() is not None:  # begun, and no statement run
            return False
        if self._closed or time.monotonic() - driver.made_at > self._recycle_seconds:
            return False
        connection.sync_connection = None
        self._untouched.append((own, driver))
        return True

    async def _abandon(self, connection: AsyncConnection, driver: DriverConnection) -> None:
        """Roll back and check the connection in; where that fails, drop it: the server rolls back then."""
        try:
            if not connection.invalidated:
                async with asyncio.timeout(ROLLBACK_TIMEOUT_SECONDS):
                    await driver.rollback()
        except Exception:
            await _discard(connection, driver)
        finally:
            await self._check_in(connection, driver)

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the clean-up to its end: a second cancellation must not leave a connection checked out."""
        task = asyncio.create_task(work)
        self._clean_ups.add(task)
        task.add_done_callback(self._clean_ups.discard)
        await asyncio.shield(task)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (translated := translate_error(error, self.where)) is not None:
                raise translated from error
            raise


def driver_of(connection: AsyncConnection) -> DriverConnection:
    """Return asyncpg's connection below SQLAlchemy's."""
    # The way through AsyncConnection takes a switch of greenlets, and nothing here waits.
    proxied = connection.sync_connection
    assert proxied is not None, "a connection that was just made"
    driver = proxied.connection.driver_connection
    assert isinstance(driver, DriverConnection), "the engine makes no other"
    return driver


async def _discard(connection: AsyncConnection, driver: DriverConnection) -> None:
    """Discard a connection: it is not used again, and its slot in the pool is free."""
    driver.terminate()
    if not connection.invalidated and not connection.closed:
        await connection.invalidate()
    await connection.close()
