"""Waiting for the log: who waits goes on when the checkpoint has passed, and no one is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio

from database.errors import DatabaseUnreachable
from projections import log_checkpoints
from projections.checkpoints import DISPATCHER, PROJECTOR, acquire
from projections.log_checkpoints import LogCheckpoints, LogPosition
from projections.session import Session
from schemas.events import Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of
from tests.support.load import some_events
from tests.support.projectors import MakeProjector
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

END_SESSIONS = """
SELECT count(pg_terminate_backend(pid, 5000)) AS ended FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

Log = Callable[..., None]
"""Writes records to the log of a partition, from an offset on."""


@pytest_asyncio.fixture
async def checkpoints(database: Database) -> AsyncIterator[LogCheckpoints]:
    made = LogCheckpoints(database.writer_url, TOPIC, DISPATCHER)
    yield made
    await made.close()


@pytest.fixture
def token(database: Database) -> int:
    """The token of a dispatcher that owns the first two partitions."""
    return max(take(database, DISPATCHER, partition) for partition in (0, 1))


def take(database: Database, consumer: str, partition: int) -> int:
    session = Session(database.writer_url)
    try:
        return acquire(session, consumer, TOPIC, partition, WATERMARKS.partition_count, None).token
    finally:
        session.close()


@pytest.fixture
def log(make_projector: MakeProjector) -> Log:
    def write(records: Sequence[Event | Record], partition: int = 0, start: int = 0) -> None:
        projector = make_projector(partition)
        found = projector.acquire(WATERMARKS).token
        projector.project(batch_of(records, token=found, partition=partition, start=start))

    return write


async def past(checkpoints: LogCheckpoints, partition: int, offset: int) -> LogPosition:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await checkpoints.past(partition, offset)


async def test_each_waits_for_its_own_partition(checkpoints: LogCheckpoints, token: int, log: Log) -> None:
    """One poller tells all of them; what it knows is told at once."""
    events = some_events(5)
    waits = [asyncio.create_task(past(checkpoints, partition, 4)) for partition in (0, 1)]
    log(events[:2])
    log(events, partition=1)
    assert await waits[1] == LogPosition(5, 0, token)
    assert not waits[0].done()
    log(some_events(5, seed=2)[2:], start=2)
    assert await waits[0] == LogPosition(5, 0, token)
    assert await past(checkpoints, 0, 0) == LogPosition(5, 0, token)


async def test_none_is_woken_for_another_partition(checkpoints: LogCheckpoints, token: int, log: Log) -> None:
    """Nor for an offset that it does not wait for: with many partitions each batch would wake them all."""
    waits = [asyncio.create_task(past(checkpoints, *each)) for each in ((0, 0), (0, 7), (1, 0))]
    await wait_until_async(lambda: len(checkpoints._waiters) == 3, "all wait")
    log(some_events(5))
    assert (await waits[0]).next_offset == 5
    assert [(each.partition, each.offset) for each in checkpoints._waiters] == [(0, 7), (1, 0)]
    for each in waits[1:]:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert checkpoints._waiters == []


async def test_a_position_says_from_where_on_all_is_applied(checkpoints: LogCheckpoints, token: int, log: Log) -> None:
    """Behind the last batch with a repeat or poison in it: what a batch without any adds is applied."""
    events = some_events(12)
    log(events[:4])
    assert await past(checkpoints, 0, 3) == LogPosition(4, 0, token)
    log([events[0], events[4]], start=4)
    assert await past(checkpoints, 0, 5) == LogPosition(6, 6, token)
    log(events[5:8], start=6)
    assert await past(checkpoints, 0, 8) == LogPosition(9, 6, token)
    log([(None, b"poison")], start=9)
    assert await past(checkpoints, 0, 9) == LogPosition(10, 10, token)


async def test_an_earlier_worker_says_nothing_of_what_is_applied(
    checkpoints: LogCheckpoints, token: int, log: Log, database: Database
) -> None:
    """Its call has four arguments. All that it passes is asked for, and so is all before the first worker of today."""
    log(some_events(4))
    superuser = Session(database.superuser_url)
    try:
        superuser.script(f"SELECT advance_checkpoint('{PROJECTOR}', '{TOPIC}', 0, 7)")
        assert await past(checkpoints, 0, 6) == LogPosition(7, 7, token)
        superuser.script("UPDATE checkpoints SET applied_from = NULL, next_offset = 9")
        assert await past(checkpoints, 0, 8) == LogPosition(9, 9, token)
        superuser.script(f"SELECT advance_checkpoint('{PROJECTOR}', '{TOPIC}', 0, 12, true)")
        assert await past(checkpoints, 0, 11) == LogPosition(12, 9, token)
    finally:
        superuser.close()


async def test_a_position_has_the_token_of_its_moment(
    checkpoints: LogCheckpoints, token: int, log: Log, database: Database
) -> None:
    """A former owner is told the checkpoint with the token of its successor."""
    events = some_events(2)
    log(events[:1])
    assert (await past(checkpoints, 0, 0)).token == token
    successor = take(database, DISPATCHER, 0)
    log(events[1:], start=1)
    assert (await past(checkpoints, 0, 1)).token == successor == token + 1


async def test_a_session_that_ends_is_told_to_who_waits_and_begun_again(
    checkpoints: LogCheckpoints, token: int, database: Database, log: Log
) -> None:
    """The next wait finds the poller as if nothing had been."""
    waits = [asyncio.create_task(past(checkpoints, partition, 0)) for partition in (0, 1)]
    await wait_until_async(lambda: len(checkpoints._waiters) == 2, "both wait")
    superuser = Session(database.superuser_url)
    try:

        def are_told() -> bool:
            superuser.query(END_SESSIONS)
            return all(each.done() for each in waits)

        await wait_until_async(are_told, "both waits have ended")
    finally:
        superuser.close()
    for each in waits:
        with pytest.raises(DatabaseUnreachable):
            await each
    log(some_events(1))
    assert await past(checkpoints, 0, 0) == LogPosition(1, 0, token)


async def test_a_defect_of_the_poller_is_told_to_who_waits(
    checkpoints: LogCheckpoints, token: int, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks again after that."""
    with monkeypatch.context() as defect:
        defect.setattr(log_checkpoints, "_POSITIONS", "SELECT 1, $1 || $2 || $3")
        with pytest.raises(DatabaseUnreachable, match="missing"):
            await past(checkpoints, 0, 0)
    log(some_events(1))
    assert await past(checkpoints, 0, 0) == LogPosition(1, 0, token)
