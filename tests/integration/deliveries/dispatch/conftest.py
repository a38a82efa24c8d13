"""One partition's dispatcher on a real log, with a directory of endpoints."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import cast
from uuid import UUID

import pytest
import pytest_asyncio

from deliveries.dispatch.backfill_reader import BackfillRate
from deliveries.dispatch.delivery_sender import DeliverySender
from deliveries.dispatch.dispatcher_parts import DispatcherParts
from deliveries.dispatch.endpoint_directory import EndpointDirectory
from deliveries.dispatch.partition_dispatcher import PartitionDispatcher
from projections.checkpoints import DISPATCHER
from projections.log_checkpoints import LogCheckpoints
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.batches import TOPIC
from tests.support.databases import Databases
from tests.support.dispatching import add_endpoint
from tests.support.partition_dispatching import Know, SentDeliveries
from tests.support.ranged_databases import copies_with_ranges
from tests.support.services import Services
from tests.support.waiting import wait_until_async


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies in which the first ranges of the log and the days' tables of deliveries are there."""
    with copies_with_ranges(stack, template_database, delivery_days=True) as made:
        yield made


@pytest.fixture
def sent() -> SentDeliveries:
    return SentDeliveries()


@pytest_asyncio.fixture
async def directory(settings: Settings) -> AsyncIterator[EndpointDirectory]:
    made = EndpointDirectory(settings)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def make_dispatcher(
    database: Database, sent: SentDeliveries, directory: EndpointDirectory
) -> Iterator[Callable[..., PartitionDispatcher]]:
    """Makes dispatchers of the first partition, or of another one, as those of several processes."""
    rate = BackfillRate(100_000, time.monotonic)
    made: list[PartitionDispatcher] = []

    def make(partition: int = 0) -> PartitionDispatcher:
        log_checkpoints = LogCheckpoints(database.writer_url, TOPIC, DISPATCHER)
        parts = DispatcherParts(database.writer_url, log_checkpoints, directory, cast(DeliverySender, sent), rate)
        made.append(PartitionDispatcher(parts, TOPIC, partition))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def dispatcher(make_dispatcher: Callable[[], PartitionDispatcher]) -> PartitionDispatcher:
    return make_dispatcher()


@pytest.fixture
def know(settings: Settings, directory: EndpointDirectory) -> Know:
    """Adds endpoints by number, and waits until the directory has them."""

    async def add(*numbers: int, **choice: object) -> None:
        for number in numbers:
            await add_endpoint(settings, number, **choice)  # type: ignore[arg-type]  # named by who calls
        wanted = {UUID(int=number) for number in numbers}
        await wait_until_async(lambda: wanted <= directory.known.active, "the directory has the endpoints")

    return add
