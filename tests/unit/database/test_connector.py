"""The connector's choice between a replica and the primary."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest

from database import connector
from database.connector import REPLICA_PAUSE_SECONDS, Database
from database.errors import DatabaseUnreachable
from database.pool import Pool


class Server:
    """A pool whose server answers or not; `asked` counts transactions that were tried."""

    role = "api"

    def __init__(self, name: str, *, answers: bool = True) -> None:
        self.name = name
        self.answers = answers
        self.asked = 0

    @asynccontextmanager
    async def transaction(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        self.asked += 1
        if not self.answers:
            raise DatabaseUnreachable(why="no route")
        yield self.name


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(connector, "time", clock)
    return clock


async def read(database: Database) -> str:
    """Return who has answered a read that a replica may serve."""
    async with database.transaction(replica=True) as connection:
        return cast(str, connection)


async def test_a_replica_that_does_not_answer_is_left_alone_for_a_while(clock: Clock) -> None:
    """Each caller would else wait for it; after the pause it is asked once more, and the pause begins again."""
    primary, replica = Server("primary"), Server("replica", answers=False)
    database = Database(cast(Pool, primary), cast(Pool, replica))

    assert [await read(database) for _ in range(5)] == ["primary"] * 5
    assert replica.asked == 1

    clock.now += REPLICA_PAUSE_SECONDS
    assert [await read(database) for _ in range(5)] == ["primary"] * 5
    assert replica.asked == 2

    replica.answers = True
    clock.now += REPLICA_PAUSE_SECONDS - 0.001
    assert await read(database) == "primary"
    clock.now += 0.001
    assert [await read(database) for _ in range(3)] == ["replica"] * 3


async def test_after_the_pause_one_caller_tries_and_no_other_waits(clock: Clock) -> None:
    """Those that come while it tries go to the primary; a failure begins a pause of its own."""
    primary, replica = Server("primary"), Server("replica", answers=False)
    database = Database(cast(Pool, primary), cast(Pool, replica))
    await read(database)
    clock.now += REPLICA_PAUSE_SECONDS
    replica.answers = True

    async with AsyncExitStack() as stack:
        trying = database.transaction(replica=True)
        assert await read(database) == "primary"
        assert cast(str, await stack.enter_async_context(trying)) == "replica"
    assert await read(database) == "replica"


async def test_the_pause_begins_when_the_replica_has_failed(clock: Clock) -> None:
    """However long it took to fail: a pause from the caller's start would be over by then."""
    primary = Server("primary")

    class Failing(Server):
        @asynccontextmanager
        async def transaction(self, *_: Any, **__: Any) -> AsyncIterator[str]:
            self.asked += 1
            clock.now += 2 * REPLICA_PAUSE_SECONDS
            raise DatabaseUnreachable(why="timed out")
            yield ""

    replica = Failing("replica")
    database = Database(cast(Pool, primary), cast(Pool, replica))
    assert [await read(database) for _ in range(5)] == ["primary"] * 5
    assert replica.asked == 1
    clock.now += REPLICA_PAUSE_SECONDS
    assert [await read(database) for _ in range(5)] == ["primary"] * 5
    assert replica.asked == 2
