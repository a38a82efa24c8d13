"""Transactions: isolation, conflicts that are tried again, savepoints, lost updates, and the row-level context."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from database.connector import BACKOFF_MAX_SECONDS, BACKOFF_SECONDS, Database, backoff_seconds
from database.errors import (
    ConstraintRefused,
    DatabaseUnreachable,
    RowRefused,
    SerializationFailed,
    TooContended,
    TransactionAborted,
    TransactionEnded,
)
from devstack import sql
from entities.skill import Skill
from tests.conftest import Database as MigratedDatabase
from tests.support import log_rows
from tests.support.connectors import connected
from tests.support.services import Services
from tests.support.waiting import wait_until_async

ADD = text("INSERT INTO checkpoints VALUES (:name, 't', 0, :next_offset)")
READ = text("SELECT next_offset FROM checkpoints WHERE consumer = :name")
SET = text("UPDATE checkpoints SET next_offset = :next_offset WHERE consumer = :name")
TENANT = text("SELECT coalesce(current_setting('plant.governance_agent_id', true), '')")


@pytest.fixture(scope="module")
def database(stack: Services, template_database: str) -> Iterator[MigratedDatabase]:
    """One migrated database for this module; each test has rows of its own name."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


@pytest.fixture
def name() -> str:
    """A name for this test's rows."""
    return uuid4().hex


async def add(connector: Database, *names: str) -> None:
    async with connector.transaction() as connection:
        for name in names:
            await connection.execute(ADD, {"name": name, "next_offset": 0})


async def value(connection: AsyncConnection, name: str) -> int | None:
    found: int | None = (await connection.execute(READ, {"name": name})).scalar_one_or_none()
    return found


async def change(connection: AsyncConnection, name: str, next_offset: int) -> None:
    await connection.execute(SET, {"name": name, "next_offset": next_offset})


def retries(reason: str) -> float:
    labels = {"role": "writer", "reason": reason}
    return REGISTRY.get_sample_value("plant_database_retries_total", labels) or 0.0


async def test_a_transaction_commits_or_rolls_back(database: MigratedDatabase) -> None:
    """What a block wrote is there when it ends, and gone when it raises; the error comes out as it is."""
    row = "INSERT INTO checkpoints VALUES (:name, 't', 0, 0)"

    async def dropped(connector: Database) -> None:
        async with connector.transaction() as connection:
            await connection.execute(text(row), {"name": "dropped"})
            raise OSError("of the caller")

    async with connected(database.writer_url) as connector:
        async with connector.transaction() as connection:
            await connection.execute(text(row), {"name": "kept"})
        with pytest.raises(OSError, match="of the caller"):
            await dropped(connector)
        async with connector.transaction() as connection:
            assert [await value(connection, each) for each in ("kept", "dropped")] == [0, None]


async def test_read_committed_sees_what_others_commit(database: MigratedDatabase, name: str) -> None:
    """The default: each statement sees what is committed by then, and nothing that is not."""
    async with connected(database.writer_url) as connector:
        await add(connector, name)
        async with connector.transaction() as reader:
            async with connector.transaction() as writer:
                await change(writer, name, 1)
                assert await value(reader, name) == 0
            assert await value(reader, name) == 1


async def test_repeatable_read_sees_one_moment(database: MigratedDatabase, name: str) -> None:
    """What is committed meanwhile stays out of sight; the isolation is that transaction's alone."""
    async with connected(database.writer_url, database_pool_size=2) as connector:
        await add(connector, name)
        async with connector.transaction(isolation="REPEATABLE READ") as reader:
            assert await value(reader, name) == 0
            async with connector.transaction() as writer:
                await change(writer, name, 1)
            assert await value(reader, name) == 0
        for _ in range(2):
            async with connector.transaction() as connection:
                shown = (await connection.execute(text("SHOW transaction_isolation"))).scalar_one()
                assert shown == "read committed"


async def test_write_skew_is_refused_when_serializable(database: MigratedDatabase, name: str) -> None:
    """Two transactions that each read what the other writes: one of them is refused, and named as a conflict."""
    left, right = f"{name} left", f"{name} right"
    async with connected(database.writer_url) as connector:
        await add(connector, left, right)

        async def skew(reads: str, writes: str, both_have_read: asyncio.Barrier) -> None:
            async with connector.transaction(isolation="SERIALIZABLE") as connection:
                assert await value(connection, reads) == 0
                await both_have_read.wait()
                await change(connection, writes, 1)

        barrier = asyncio.Barrier(2)
        outcomes = await asyncio.gather(skew(left, right, barrier), skew(right, left, barrier), return_exceptions=True)
        assert sorted(type(outcome) for outcome in outcomes if outcome is not None) == [SerializationFailed]


async def test_serialization_failures_are_tried_again(database: MigratedDatabase, name: str) -> None:
    """Eight increments at once, each on the value that it has read: none is lost, and some had to be repeated."""
    before = retries("serialization")
    async with connected(database.writer_url) as connector:
        await add(connector, name)

        calls, both_have_read = 0, asyncio.Barrier(2)

        async def increment(connection: AsyncConnection) -> int:
            nonlocal calls
            calls += 1
            first = calls <= 2
            found = await value(connection, name)
            assert found is not None
            if first:
                await both_have_read.wait()
            await change(connection, name, found + 1)
            return found + 1

        work = [connector.run(increment, isolation="REPEATABLE READ", attempts=50) for _ in range(8)]
        assert sorted(await asyncio.gather(*work)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert retries("serialization") > before


async def test_without_isolation_updates_are_lost(database: MigratedDatabase, name: str) -> None:
    """The same increments under READ COMMITTED lose some: what the test before it shows is the isolation's doing."""
    async with connected(database.writer_url) as connector:
        await add(connector, name)
        barrier = asyncio.Barrier(4)

        async def increment(connection: AsyncConnection) -> None:
            found = await value(connection, name)
            assert found is not None
            await barrier.wait()
            await change(connection, name, found + 1)

        await asyncio.gather(*(connector.run(increment) for _ in range(4)))
        async with connector.transaction() as connection:
            assert await value(connection, name) == 1


async def test_a_deadlock_is_tried_again(database: MigratedDatabase, name: str) -> None:
    """Two transactions that lock the same rows in opposite order: Postgres ends one, and both are done in the end."""
    left, right = f"{name} left", f"{name} right"
    before = retries("deadlock")
    async with connected(database.writer_url) as connector:
        await add(connector, left, right)
        both_hold_one = asyncio.Barrier(2)
        calls = 0

        async def cross(connection: AsyncConnection, first: str, second: str) -> None:
            nonlocal calls
            calls += 1
            await change(connection, first, 1)
            if calls <= 2:
                await both_hold_one.wait()
            await change(connection, second, 1)

        await asyncio.gather(
            connector.run(lambda connection: cross(connection, left, right)),
            connector.run(lambda connection: cross(connection, right, left)),
        )
        async with connector.transaction() as connection:
            assert [await value(connection, each) for each in (left, right)] == [1, 1]
    assert calls == 3
    assert retries("deadlock") == before + 1


async def test_attempts_come_to_an_end(database: MigratedDatabase, name: str) -> None:
    """Work that conflicts every time is given up after as many attempts as allowed, with the last reason."""
    async with connected(database.writer_url) as connector:
        await add(connector, name)
        calls = 0

        async def always_late(connection: AsyncConnection) -> None:
            nonlocal calls
            calls += 1
            await value(connection, name)
            async with connector.transaction() as other:
                await change(other, name, calls)
            await change(connection, name, 99)

        with pytest.raises(TooContended, match=r"3 attempts failed.*could not serialize"):
            await connector.run(always_late, isolation="REPEATABLE READ", attempts=3)
    assert calls == 3


async def test_other_errors_are_not_tried_again(database: MigratedDatabase) -> None:
    """Only what another attempt can mend is repeated."""
    calls = 0

    async def wrong(_: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("of the caller")

    async with connected(database.writer_url) as connector:
        with pytest.raises(ValueError, match="of the caller"):
            await connector.run(wrong)
        with pytest.raises(ValueError, match="at least 1"):
            await connector.run(wrong, attempts=0)
    assert calls == 1


def test_backoff_is_jittered_and_bounded() -> None:
    """Each wait lies under a bound that doubles up to a limit, and waits differ."""
    for attempt in range(1, 12):
        waits = [backoff_seconds(attempt) for _ in range(50)]
        assert 0 <= min(waits) <= max(waits) <= min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2**attempt)
        assert len(set(waits)) > 40


async def test_a_savepoint_undoes_its_own_part(database: MigratedDatabase, name: str) -> None:
    """An inner failure takes back what came after the savepoint; the outer transaction goes on and commits."""

    async def add_twice(connection: AsyncConnection) -> None:
        async with connection.begin_nested():
            await change(connection, name, 2)
            await connection.execute(ADD, {"name": name, "next_offset": 3})

    async with connected(database.writer_url) as connector:
        async with connector.transaction() as connection:
            await connection.execute(ADD, {"name": name, "next_offset": 1})
            with pytest.raises(ConstraintRefused, match="checkpoints_pkey"):
                await add_twice(connection)
            async with connection.begin_nested():
                await connection.execute(ADD, {"name": f"{name} too", "next_offset": 4})
        async with connector.transaction() as connection:
            assert [await value(connection, each) for each in (name, f"{name} too")] == [1, 4]


async def test_what_is_rolled_back_by_hand_is_not_committed(database: MigratedDatabase, name: str) -> None:
    """`rollback` inside the block undoes it for good, on a connection and on a session."""
    async with connected(database.writer_url) as connector:
        async with connector.transaction() as connection:
            await connection.execute(ADD, {"name": name, "next_offset": 0})
            await connection.rollback()
        async with connector.session() as session:
            await session.execute(ADD, {"name": name, "next_offset": 0})
            await session.rollback()
        async with connector.transaction() as connection:
            assert await value(connection, name) is None


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_block_that_ended_its_transaction_can_do_no_more(
    database: MigratedDatabase, name: str, end: str
) -> None:
    """What came before is kept or undone as asked; another statement is refused, and the connection is fine."""

    async def go_on(connector: Database) -> None:
        async with connector.transaction("genesis") as connection:
            await connection.execute(ADD, {"name": name, "next_offset": 0})
            await getattr(connection, end)()
            await change(connection, name, 1)

    async with connected(database.writer_url, database_pool_size=1) as connector:
        with pytest.raises(TransactionEnded):
            await go_on(connector)
        async with connector.transaction() as connection:
            assert await value(connection, name) == (0 if end == "commit" else None)


async def test_a_failure_that_was_passed_over_is_no_commit(database: MigratedDatabase, name: str) -> None:
    """A block that goes on after a failed statement, without a savepoint, gets an error: nothing of it was kept."""

    async def pass_over(connector: Database) -> None:
        async with connector.transaction() as connection:
            await connection.execute(ADD, {"name": name, "next_offset": 0})
            with pytest.raises(DBAPIError, match="no_such_table"):
                await connection.execute(text("SELECT FROM no_such_table"))

    async with connected(database.writer_url) as connector:
        with pytest.raises(TransactionAborted):
            await pass_over(connector)
        async with connector.transaction() as connection:
            assert await value(connection, name) is None


async def test_a_block_without_a_statement_leaves_no_transaction(database: MigratedDatabase) -> None:
    """It begins and ends like any other."""
    idle = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.name}' AND state LIKE 'idle in tr%'"
    async with connected(database.writer_url, database_pool_size=1) as connector:
        async with connector.transaction():
            assert sql.value(database.superuser_url, idle) == 1
        assert sql.value(database.superuser_url, idle) == 0
        async with connector.session():
            pass
        assert sql.value(database.superuser_url, idle) == 0


async def test_a_transaction_that_idles_too_long_is_ended(database: MigratedDatabase, name: str) -> None:
    """Its session is gone, what it wrote too, and the caller gets an error; the pool goes on with another session."""
    settings = {"database_idle_in_transaction_timeout_seconds": 1}
    ours = f"datname = '{database.name}' AND state LIKE 'idle in transaction%'"

    async def idle(connector: Database) -> None:
        async with connector.transaction() as connection:
            await connection.execute(ADD, {"name": name, "next_offset": 0})
            idle = f"SELECT count(*) FROM pg_stat_activity WHERE {ours}"
            await wait_until_async(lambda: sql.value(database.superuser_url, idle) == 0, "the session is ended")

    async with connected(database.writer_url, **settings) as connector:
        with pytest.raises(DatabaseUnreachable, match=r"connection was lost|idle-in-transaction"):
            await idle(connector)
        async with connector.transaction() as connection:
            assert await value(connection, name) is None


@pytest.mark.parametrize(
    "tenant",
    ["genesis", "o'clock", "'; SELECT 1; --", "\\'; SELECT 1; --", "back\\slash", "%s $1 :x", "ünï", "a" * 200],
)
async def test_the_tenant_is_the_transactions_own(database: MigratedDatabase, tenant: str) -> None:
    """The tenant that a transaction names holds in it exactly, and is gone for the next one on the same session."""
    async with connected(database.writer_url, database_pool_size=1) as connector:
        async with connector.transaction(tenant) as connection:
            assert (await connection.execute(TENANT)).scalar_one() == tenant
        async with connector.transaction() as connection:
            assert (await connection.execute(TENANT)).scalar_one() == ""


async def test_a_tenant_is_quoted_whatever_the_database_says(database: MigratedDatabase) -> None:
    """Where a database makes backslashes escape quotes, the connector's sessions don't."""
    alter = f"ALTER DATABASE {database.name}"
    sql.execute(database.superuser_url, [f"{alter} SET standard_conforming_strings = off"])
    hostile = "\\'; DROP TABLE checkpoints; --"
    try:
        async with connected(database.writer_url) as connector, connector.transaction(hostile) as connection:
            assert (await connection.execute(TENANT)).scalar_one() == hostile
    finally:
        sql.execute(database.superuser_url, [f"{alter} RESET standard_conforming_strings"])


async def test_a_tenant_does_not_outlive_its_block(database: MigratedDatabase) -> None:
    """Not even one that was set for the whole session, behind the connector's back."""
    set_for_session = text("SELECT set_config('plant.governance_agent_id', 'genesis', false)")
    async with connected(database.writer_url, database_pool_size=1) as connector:
        async with connector.transaction() as connection:
            await connection.execute(set_for_session)
        async with connector.transaction() as connection:
            assert (await connection.execute(TENANT)).scalar_one() == ""


@pytest.mark.parametrize(("tenant", "message"), [("a\x00b", "NUL"), ("", "empty")])
async def test_a_tenant_that_can_be_none_is_refused(database: MigratedDatabase, tenant: str, message: str) -> None:
    """Postgres's text ends at a NUL, and an empty tenant would be the same as none."""
    async with connected(database.writer_url) as connector:
        with pytest.raises(ValueError, match=message):
            async with connector.transaction(tenant):
                raise AssertionError("never begun")


async def test_rows_of_another_tenant_are_neither_seen_nor_written(database: MigratedDatabase) -> None:
    """A transaction has its own tenant's rows only, one without a tenant has none; a write across is refused."""
    row = text("INSERT INTO entities (id, entity_type, governance_agent_id) VALUES (:id, 'team', :tenant)")
    count = text("SELECT count(*) FROM entities WHERE id = :id")
    new = uuid4()

    async def write(connector: Database, tenant: str | None) -> None:
        async with connector.transaction(tenant) as connection:
            await connection.execute(row, {"id": new, "tenant": "genesis"})

    async def seen(connector: Database, tenant: str | None) -> int:
        async with connector.transaction(tenant) as connection:
            found: int = (await connection.execute(count, {"id": new})).scalar_one()
            return found

    async with connected(database.writer_url) as connector:
        for tenant in ("other", None):
            with pytest.raises(RowRefused, match="row-level security"):
                await write(connector, tenant)
        await write(connector, "genesis")
        assert [await seen(connector, tenant) for tenant in ("genesis", "other", None)] == [1, 0, 0]


async def test_a_read_only_transaction_writes_nothing(database: MigratedDatabase, name: str) -> None:
    """The server refuses the write."""
    async with connected(database.writer_url) as connector:
        with pytest.raises(Exception, match="read-only"):
            async with connector.transaction(read_only=True) as connection:
                await connection.execute(ADD, {"name": name, "next_offset": 0})


async def test_a_session_commits_at_the_end(database: MigratedDatabase) -> None:
    """Mapped classes are written when the block ends, not at all when it raises, and a savepoint works as well."""
    kept, dropped, undone = (Skill(name=f"skill {number}", category="technical") for number in range(3))

    async def fail(connector: Database) -> None:
        async with connector.session("genesis") as session:
            session.add(dropped)
            await session.flush()
            raise ValueError("of the caller")

    async with connected(database.writer_url) as connector:
        async with connector.session("genesis") as session:
            session.add(kept)
            savepoint = await session.begin_nested()
            session.add(undone)
            await session.flush()
            await savepoint.rollback()
        with pytest.raises(ValueError, match="of the caller"):
            await fail(connector)
        async with connector.session("genesis", read_only=True) as session:
            assert list(await session.scalars(select(Skill.id))) == [kept.id]


async def test_a_sessions_own_commit_waits_for_the_block(database: MigratedDatabase) -> None:
    """`commit` on the session only flushes: when the block raises later, nothing is kept."""
    skill = Skill(name="a skill", category="technical")

    async def fail(connector: Database) -> None:
        async with connector.session("genesis") as session:
            session.add(skill)
            await session.commit()
            assert list(await session.scalars(select(Skill.id).where(Skill.id == skill.id))) == [skill.id]
            raise ValueError("of the caller")

    async with connected(database.writer_url) as connector:
        with pytest.raises(ValueError, match="of the caller"):
            await fail(connector)
        async with connector.session("genesis") as session:
            assert await session.get(Skill, skill.id) is None


async def test_a_sessions_work_is_tried_again(database: MigratedDatabase) -> None:
    """Renames at once, each of what it has read: none is lost, each attempt reads again, objects outlive the block."""
    skill = Skill(name="", category="technical")
    async with connected(database.writer_url) as connector:
        async with connector.session("genesis") as session:
            skill.name = "x"
            session.add(skill)

        async def lengthen(session: AsyncSession) -> Skill:
            found = await session.get_one(Skill, skill.id)
            await asyncio.sleep(0.01)
            found.name += "x"
            return found

        work = [connector.run_session(lengthen, "genesis", isolation="REPEATABLE READ", attempts=50) for _ in range(4)]
        assert sorted(found.name for found in await asyncio.gather(*work)) == ["x" * length for length in range(2, 6)]
