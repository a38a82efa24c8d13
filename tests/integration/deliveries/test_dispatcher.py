"""Dispatchers on real Kafka and Postgres: what is applied becomes deliveries, whoever dispatches it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import msgspec
import pytest_asyncio

from operations.services.dispatcher import running_dispatcher
from operations.services.worker import build_worker
from runtime.settings import Settings
from streams.agents import Worker
from tests.conftest import MakeTopic
from tests.support.dispatching import add_endpoint, read_deliveries
from tests.support.load import fill, some_events
from tests.support.waiting import wait_until_async

StartDispatcher = Callable[..., Awaitable[Worker]]


@pytest_asyncio.fixture
async def deliveries_topic(make_topic: MakeTopic) -> str:
    return await make_topic(family="genesis.deliveries")


@pytest_asyncio.fixture
async def worker(settings: Settings, topic: str) -> AsyncIterator[Worker]:
    """The worker that writes the log."""
    running = build_worker(settings, [topic])
    await running.start()
    yield running
    await running.stop()


@pytest_asyncio.fixture
async def start_dispatcher(settings: Settings, topic: str, deliveries_topic: str) -> AsyncIterator[StartDispatcher]:
    """Starts dispatchers in this process; they stop when the test ends."""
    async with AsyncExitStack() as running:

        async def start(**changes: object) -> Worker:
            changed = msgspec.structs.replace(settings, **changes)
            return await running.enter_async_context(running_dispatcher(changed, topic, deliveries_topic))

        yield start


async def test_an_event_becomes_a_delivery_for_each_endpoint_that_asks_for_it(
    settings: Settings, topic: str, deliveries_topic: str, worker: Worker, start_dispatcher: StartDispatcher
) -> None:
    """Once each, with the event's data, under the endpoint's key; others get nothing."""
    everything = await add_endpoint(settings, 1)
    rated = await add_endpoint(settings, 2, event_types=["genesis.agent.rated"])
    await add_endpoint(settings, 3, event_types=["genesis.team.formed"])
    await start_dispatcher()
    events = some_events(300)
    fill(settings, topic, iter(events))
    wanted = {(event.event_id, everything) for event in events}
    wanted |= {(event.event_id, rated) for event in events if event.event_type == "genesis.agent.rated"}

    async def is_published() -> bool:
        return len(await read_deliveries(settings, deliveries_topic)) >= len(wanted)

    await wait_until_async(is_published, "all deliveries are published")
    published = await read_deliveries(settings, deliveries_topic)
    assert sorted((each.queued.event_id, each.queued.endpoint_id) for each in published) == sorted(wanted)
    assert {each.queued.stream for each in published} == {"live"}
