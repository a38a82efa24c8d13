"""Waiting for read models: all that readers see, some, many who wait at once, and what ends a wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from database.connector import connect
from database.errors import DatabaseUnreachable
from devstack import sql
from projections.checkpoint_poller import CheckpointPoller, NotCaughtUp
from projections.checkpoint_waiter import ReadModels, UnknownReadModel
from runtime.settings import Settings
from streams.record_position import RecordPosition
from tests.conftest import Database
from tests.support.batches import TOPIC
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

FIRST = RecordPosition(TOPIC, 0, 5)


@pytest_asyncio.fixture
async def read_models(settings: Settings) -> AsyncIterator[ReadModels]:
    made = ReadModels(settings)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def poller(settings: Settings) -> AsyncIterator[CheckpointPoller]:
    database = connect(settings, "api")
    made = CheckpointPoller(database)
    yield made
    await made.close()
    await database.close()


def advance(database: Database, next_offset: int, *models: str, partition: int = 0) -> None:
    """Set checkpoints of read models apart from the log's."""
    sql.execute(
        database.superuser_url,
        [
            f"INSERT INTO model_checkpoints VALUES ('{model}', 1, '{TOPIC}', {partition}, {next_offset})"
            f" ON CONFLICT (projection, version, topic, partition) DO UPDATE SET next_offset = {next_offset}"
            for model in models
        ],
    )


def show(database: Database, *models: str) -> None:
    """Let readers see builds of these read models, and no others."""
    names = ", ".join(f"'{model}'" for model in models)
    sql.execute(
        database.superuser_url,
        [
            f"UPDATE read_model_builds SET live = false WHERE projection NOT IN ({names})",
            *(
                f"INSERT INTO read_model_builds (projection, version, tables, live) VALUES ('{model}', 1, '{{}}', true)"
                " ON CONFLICT (projection, version) DO UPDATE SET live = true"
                for model in models
            ),
        ],
    )


async def test_all_read_models_that_readers_see_are_waited_for(database: Database, read_models: ReadModels) -> None:
    """The slowest one decides; one that is named is waited for alone."""
    show(database, "agents", "skills")
    advance(database, 6, "agents")
    await read_models.wait_for(FIRST, 0, "agents")
    with pytest.raises(NotCaughtUp, match="skills") as raised:
        await read_models.wait_for(FIRST, 0)
    assert raised.value.missing == ((FIRST, 0),)
    waiting = asyncio.create_task(read_models.wait_for(FIRST, DEADLINE_SECONDS))
    await asyncio.to_thread(advance, database, 6, "skills")
    await waiting


async def test_an_unknown_read_model_is_refused_at_once(read_models: ReadModels) -> None:
    """The error names those that are known; the log is one of them."""
    with pytest.raises(UnknownReadModel, match="'agent'") as raised:
        await read_models.wait_for(FIRST, DEADLINE_SECONDS, "agent")
    assert "agents" in raised.value.why
    with pytest.raises(NotCaughtUp):
        await read_models.wait_for(FIRST, 0, "log")


async def test_where_readers_see_nothing_nothing_is_promised(database: Database, read_models: ReadModels) -> None:
    """A wait for all of no read models is an error, not an answer."""
    sql.execute(database.superuser_url, ["UPDATE read_model_builds SET live = false"])
    with pytest.raises(UnknownReadModel, match="no read model that readers see"):
        await read_models.wait_for(FIRST, 0)


async def test_many_who_wait_are_told_each_in_their_turn(database: Database, poller: CheckpointPoller) -> None:
    """Waiters of several offsets, partitions and read models; each returns at its own position and no earlier."""
    show(database, "agents", "skills")
    waits = {
        (model, partition, offset): asyncio.create_task(
            poller.wait_for(model, [RecordPosition(TOPIC, partition, offset)], DEADLINE_SECONDS)
        )
        for model in ("agents", "skills")
        for partition in (0, 1)
        for offset in range(10)
    }
    await asyncio.to_thread(advance, database, 5, "agents")
    expected = {("agents", 0, offset) for offset in range(5)}

    def done() -> set[tuple[str, int, int]]:
        return {key for key, task in waits.items() if task.done()}

    await wait_until_async(lambda: done() == expected, lambda: f"{done()}")
    await asyncio.to_thread(advance, database, 10, "agents", "skills")
    await asyncio.to_thread(advance, database, 10, "agents", "skills", partition=1)
    await asyncio.gather(*waits.values())


async def test_a_wait_for_several_positions_needs_them_all(database: Database, poller: CheckpointPoller) -> None:
    """What is missing when the time is over is named, and nothing else."""
    show(database, "agents")
    advance(database, 3, "agents")
    positions = [RecordPosition(TOPIC, 0, 2), RecordPosition(TOPIC, 1, 2)]
    with pytest.raises(NotCaughtUp) as raised:
        await poller.wait_for("agents", positions, 4)
    assert [each for each, _ in raised.value.missing] == [positions[1]]
    advance(database, 3, "agents", partition=1)
    await poller.wait_for("agents", positions, DEADLINE_SECONDS)
    await poller.wait_for("agents", [], 0)


async def test_a_wait_that_is_cancelled_leaves_nothing(poller: CheckpointPoller) -> None:
    """The poller asks for nobody then."""
    waiting = asyncio.create_task(poller.wait_for("agents", [FIRST], DEADLINE_SECONDS))
    await wait_until_async(lambda: poller._waits, "it waits")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert poller._waits == {}
    assert poller._next_offsets == {}


async def test_a_database_that_is_away_ends_every_wait(settings: Settings) -> None:
    """Nobody waits to the end of their time for something that nobody can say."""
    database = connect(
        msgspec.structs.replace(settings, database_api_url="postgresql://plant_api:p@127.0.0.1:1/plant"), "api"
    )
    poller = CheckpointPoller(database)
    waits = [poller.wait_for("agents", [FIRST], DEADLINE_SECONDS) for _ in range(3)]
    outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(each) for each in outcomes] == [DatabaseUnreachable] * 3
    await poller.close()
    await database.close()
