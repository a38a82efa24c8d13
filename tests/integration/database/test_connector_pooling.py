"""The pool: its bound, who waits, what is returned, what is replaced, and what cancellation leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError

from database.connector import Database, fetch_rows
from database.errors import DatabaseClosed, DatabaseUnreachable, PoolExhausted, ValueRefused
from devstack import sql
from tests.conftest import Database as MigratedDatabase
from tests.support import log_rows
from tests.support.connectors import connected
from tests.support.services import Services
from tests.support.unresponsive_front import unresponsive_front
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

PID = text("SELECT pg_backend_pid()")


@pytest.fixture(scope="module")
def database(stack: Services, template_database: str) -> Iterator[MigratedDatabase]:
    """One migrated database for this module."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


def sessions(database: MigratedDatabase, state: str = "%") -> int:
    """The connector's sessions as the server counts them."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}' AND usename = 'plant_writer'"
    found: int = sql.value(database.superuser_url, f"{query} AND state LIKE '{state}'")
    return found


async def ask(connector: Database, seconds: float = 0.0) -> int:
    async with connector.transaction() as connection:
        if seconds:
            await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
        pid: int = (await connection.execute(PID)).scalar_one()
        return pid


async def ask_at_end(connector: Database, running: asyncio.Event, ended: asyncio.Event) -> int:
    """Hold a transaction open until it may end."""
    async with connector.transaction() as connection:
        pid: int = (await connection.execute(PID)).scalar_one()
        running.set()
        await ended.wait()
        assert (await connection.execute(PID)).scalar_one() == pid
        return pid


def sample(name: str) -> float:
    return REGISTRY.get_sample_value(f"plant_database_{name}", {"role": "writer"}) or 0.0


async def test_nothing_is_connected_before_it_is_used(database: MigratedDatabase) -> None:
    """Making a connector costs no connection; the first transaction makes one, the second uses it again."""
    async with connected(database.writer_url) as connector:
        assert sessions(database) == 0
        assert await ask(connector) == await ask(connector)
        assert sessions(database) == 1


async def test_a_pool_never_grows_past_its_size(database: MigratedDatabase) -> None:
    """Forty transactions on a pool of four are served by four sessions."""
    async with connected(database.writer_url, database_pool_size=4) as connector:
        pids = await asyncio.gather(*(ask(connector, 0.01) for _ in range(40)))
        assert len(set(pids)) == sessions(database) == 4


async def test_an_exhausted_pool_says_so(database: MigratedDatabase) -> None:
    """A task without a connection in time gets an error with their number and the setting; the others go on."""
    before = sample("pool_timeouts_total")
    async with connected(database.writer_url, database_pool_size=1, database_pool_wait_seconds=1) as connector:
        async with connector.transaction() as connection:
            with pytest.raises(PoolExhausted, match="All 1 connections of plant_writer") as error:
                await ask(connector)
            await connection.execute(PID)
        assert await ask(connector)
    assert "PLANT_DATABASE_POOL_SIZE" in error.value.next_step
    assert error.value.exit_code == 4
    assert sample("pool_timeouts_total") == before + 1


async def test_a_failed_connection_takes_no_slot() -> None:
    """More attempts than the pool has slots fail in the same way: none of them counts as in use."""
    async with connected("postgresql://u:x@127.0.0.1:1/d", database_pool_size=1) as connector:
        for _ in range(3):
            with pytest.raises(DatabaseUnreachable, match="nothing listens"):
                await connector.assert_least_privilege()


async def test_waiting_is_first_come_first_served(database: MigratedDatabase) -> None:
    """A task that gives its connection back and asks again at once stands behind those that wait already."""
    order: list[int] = []

    async def work(number: int, connector: Database) -> None:
        for _ in range(3):
            async with connector.transaction():
                order.append(number)

    async with connected(database.writer_url, database_pool_size=1) as connector:
        await asyncio.gather(*(work(number, connector) for number in range(5)))
    assert order == [*range(5)] * 3


async def test_no_task_starves(database: MigratedDatabase) -> None:
    """Two hundred tasks on ten connections, five transactions each: all get as many before any gets two more."""
    done = dict.fromkeys(range(200), 0)
    gaps: list[int] = []

    async def work(number: int, connector: Database) -> None:
        for _ in range(5):
            async with connector.transaction() as connection:
                await connection.execute(PID)
            done[number] += 1
            gaps.append(max(done.values()) - min(done.values()))

    async with connected(database.writer_url, database_pool_size=10) as connector:
        await asyncio.gather(*(work(number, connector) for number in done))
    assert max(gaps) <= 2


async def test_a_failed_block_gives_its_connection_back(database: MigratedDatabase) -> None:
    """Blocks that raise, in any way, leave the pool as they found it, and no transaction open."""

    async def fail(connector: Database, statement: str) -> None:
        async with connector.transaction() as connection:
            await connection.execute(text(statement))
            raise RuntimeError("of the caller")

    async with connected(database.writer_url, database_pool_size=2) as connector:
        for statement in ("SELECT 1", "SELECT 1/0", "SELECT nothing_such", "SELECT 1") * 3:
            with pytest.raises(Exception, match=r"caller|[Dd]ivision|nothing_such"):
                await fail(connector, statement)
        assert sample("connections_in_use") == 0
        assert sessions(database, "idle in transaction%") == 0
        await asyncio.gather(*(ask(connector) for _ in range(4)))
    assert sample("connections_open") == 0


async def test_an_old_connection_is_replaced(database: MigratedDatabase) -> None:
    """Past the recycle age a connection is closed and another one made; before it, it is kept."""
    async with connected(database.writer_url, database_pool_recycle_seconds=1) as connector:
        first = await ask(connector)
        assert await ask(connector) == first
        await wait_until_async(lambda: _aged(connector, first), "another backend")
        assert sessions(database) == 1


async def _aged(connector: Database, first: int) -> bool:
    return await ask(connector) != first


async def test_cancelling_a_query_ends_it_and_leaks_nothing(database: MigratedDatabase) -> None:
    """The server stops working on it, the place in the pool is free, and the row that it wrote is not there."""
    async with connected(database.writer_url, database_pool_size=1) as connector:

        async def work() -> None:
            async with connector.transaction() as connection:
                await connection.execute(text("INSERT INTO checkpoints VALUES ('cancelled', 't', 0, 0)"))
                await connection.execute(text("SELECT pg_sleep(60)"))

        task = asyncio.create_task(work())
        await wait_until_async(lambda: sessions(database, "active") == 1, "the query runs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_async(lambda: sessions(database, "active") == 0, "the query has ended")
        assert await ask(connector)
        assert sample("connections_in_use") == 0
        query = "SELECT count(*) FROM checkpoints WHERE consumer = 'cancelled'"
        assert sql.value(database.superuser_url, query) == 0


async def test_cancelling_a_wait_leaks_nothing(database: MigratedDatabase) -> None:
    """Tasks that are cancelled while they wait for a connection leave the queue; the next in line is served."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        async with connector.transaction():
            waiting = [asyncio.create_task(ask(connector)) for _ in range(10)]
            await asyncio.sleep(0)
            for task in waiting[:9]:
                task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True] * 9 + [False]
        assert await ask(connector)


async def test_cancelling_twice_leaks_nothing(database: MigratedDatabase) -> None:
    """A task that is cancelled again while it rolls back: the roll-back goes on, and the connection comes back."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        holding = asyncio.Event()

        async def work() -> None:
            async with connector.transaction() as connection:
                await connection.execute(PID)
                holding.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await holding.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ask(connector)
        assert sample("connections_in_use") == 0
        assert sessions(database, "idle in transaction%") == 0


async def test_a_storm_of_cancellations_leaks_nothing(database: MigratedDatabase) -> None:
    """Whatever moment a task is cancelled at: all places come back, and the server has no more sessions than places."""
    async with connected(database.writer_url, database_pool_size=3) as connector:
        for turn in range(30):
            tasks = [asyncio.create_task(ask(connector, 0.001)) for _ in range(6)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await wait_until_async(lambda: sample("connections_in_use") == 0, "all places are free")
        assert len(set(await asyncio.gather(*(ask(connector, 0.01) for _ in range(6))))) == 3
        await wait_until_async(lambda: sessions(database) == 3, "only the pool's sessions are left")


async def test_closing_waits_for_what_runs_and_takes_nothing_new(database: MigratedDatabase) -> None:
    """A running transaction commits; a new one is refused; afterwards the server has no session of ours."""
    async with connected(database.writer_url) as connector:
        runs, may_end = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(ask_at_end(connector, runs, may_end))
        await runs.wait()
        closing = asyncio.create_task(connector.close())
        await asyncio.sleep(0)
        with pytest.raises(DatabaseClosed):
            await ask(connector)
        may_end.set()
        assert await running
        await closing
        await wait_until_async(lambda: sessions(database) == 0, "no session is left")


async def test_closing_refuses_those_that_wait(database: MigratedDatabase) -> None:
    """What waits for a connection when the connector closes is refused, and connects no more afterwards."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        runs, may_end = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(ask_at_end(connector, runs, may_end))
        await runs.wait()
        waiting = [asyncio.create_task(ask(connector)) for _ in range(3)]
        await wait_until_async(lambda: sample("pool_waiting") == 3, "they wait")
        closing = asyncio.create_task(connector.close())
        await asyncio.sleep(0)
        may_end.set()
        results = await asyncio.gather(running, *waiting, return_exceptions=True)
        assert [type(result) for result in results] == [int, DatabaseClosed, DatabaseClosed, DatabaseClosed]
        await closing
        await wait_until_async(lambda: sessions(database) == 0, "no session is left")


async def test_closing_does_not_wait_forever(database: MigratedDatabase) -> None:
    """A transaction that does not end is ended after the deadline: it gets an error, and the server stops its query."""
    async with connected(database.writer_url) as connector:
        stuck = asyncio.create_task(ask(connector, 60))
        await wait_until_async(lambda: sessions(database, "active") == 1, "it runs")
        await connector.close(timeout_seconds=0.1)
        with pytest.raises(DatabaseClosed, match=r"had not ended 0\.1 s after"):
            await stuck
        await wait_until_async(lambda: sessions(database) == 0, "no session is left")
    assert (sample("connections_in_use"), sample("connections_open")) == (0, 0)


async def test_closing_does_not_wait_for_an_unresponsive_server(database: MigratedDatabase) -> None:
    """Connections to an unresponsive server are aborted: all at once, and none stays open."""
    async with unresponsive_front(database.writer_url) as front:
        async with connected(front.address, database_pool_size=5) as connector:
            assert len(set(await asyncio.gather(*(ask(connector, 0.05) for _ in range(5))))) == 5
            front.stop_responding()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await connector.close()
        assert (sample("connections_in_use"), sample("connections_open")) == (0, 0)
    await wait_until_async(lambda: sessions(database) == 0, "the server has found out")


async def test_the_pool_is_measured(database: MigratedDatabase) -> None:
    """Open connections, those in use, and how long transactions waited are there for the operator."""
    waits = sample("pool_wait_seconds_count")
    async with connected(database.writer_url) as connector:
        async with connector.transaction(), connector.transaction():
            assert (sample("connections_in_use"), sample("connections_open")) == (2, 2)
        async with connector.transaction() as connection:
            await connection.execute(PID)
            assert (sample("connections_in_use"), sample("connections_open")) == (1, 2)
    assert (sample("connections_in_use"), sample("connections_open")) == (0, 0)
    assert sample("pool_wait_seconds_count") == waits + 3


BARE_PID = "SELECT pg_backend_pid() AS pid, current_setting('plant.governance_agent_id', true) AS tenant"


async def test_reads_past_sqlalchemy_share_connections_and_no_tenant(database: MigratedDatabase) -> None:
    """One session serves them one after another, each with its own tenant, and statements through SQLAlchemy too."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        seen = []
        for tenant in ("acme", None, "genesis"):
            async with connector.transaction(tenant, read_only=True) as connection:
                (row,) = await fetch_rows(connection, BARE_PID)
                seen.append((row["pid"], row["tenant"]))
        assert [tenant for _, tenant in seen] == ["acme", "", "genesis"]
        assert len({pid for pid, _ in seen}) == 1
        assert await ask(connector) == seen[0][0]
        assert sessions(database) == 1
    assert sessions(database) == 0, "closing ends those that no block has"


async def test_a_connection_is_of_no_use_behind_its_block(database: MigratedDatabase) -> None:
    """Whoever has kept it would read with the tenant of another block."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        async with connector.transaction("acme") as kept:
            await fetch_rows(kept, BARE_PID)
        async with connector.transaction("genesis"):
            with pytest.raises(InvalidRequestError):
                await kept.execute(PID)


async def test_a_session_that_did_nothing_leaves_nothing(database: MigratedDatabase) -> None:
    """The next one begins anew, though SQLAlchemy ran no statement in between."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        for _ in range(3):
            async with connector.session("acme"):
                pass
            async with connector.transaction("acme") as connection:
                await fetch_rows(connection, BARE_PID)
        async with connector.session("acme") as session:
            assert (await session.execute(PID)).scalar_one()


async def test_a_read_that_fails_or_whose_session_died_harms_no_other(database: MigratedDatabase) -> None:
    """Its transaction is rolled back; a dead connection is replaced without an error."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        for _ in range(2):
            with pytest.raises(ValueRefused):
                async with connector.transaction() as connection:
                    await fetch_rows(connection, "SELECT 1 / $1::integer", 0)
        async with connector.transaction() as connection:
            ((pid, _),) = await fetch_rows(connection, BARE_PID)
        sql.execute(database.superuser_url, [f"SELECT pg_terminate_backend({pid}, 10000)"])
        async with connector.transaction() as connection:
            ((other, _),) = await fetch_rows(connection, BARE_PID)
        assert other != pid
