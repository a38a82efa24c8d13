"""Dispatchers on real Kafka and Postgres: what is applied becomes deliveries, whoever dispatches it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing
from types import SimpleNamespace
from typing import NamedTuple
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio
from prometheus_client import generate_latest

from deliveries.dispatch.backfill_reader import SLICE_EVENTS_MAX
from deliveries.endpoints import EndpointId
from operations.services import dispatcher as dispatcher_service
from operations.services.dispatcher import DispatcherGauges, running_dispatcher
from operations.services.worker import build_worker
from projections.session import Session
from runtime.settings import Settings
from schemas.events import Event
from streams.agents import Worker
from tests.conftest import Database, MakeTopic
from tests.support.dispatching import Published, add_endpoint, read_deliveries, without_copies
from tests.support.load import fill, some_events
from tests.support.waiting import wait_until_async

Deliveries = set[tuple[UUID, EndpointId]]
StartDispatcher = Callable[[], Awaitable[Worker]]


class Topics(NamedTuple):
    """The topics of a test."""

    events: str
    deliveries: str


@pytest_asyncio.fixture
async def topics(make_topic: MakeTopic) -> Topics:
    return Topics(await make_topic(), await make_topic(family="genesis.deliveries"))


@pytest_asyncio.fixture
async def worker(settings: Settings, topics: Topics) -> AsyncIterator[Worker]:
    """The worker that writes the log."""
    running = build_worker(settings, [topics.events])
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def dispatcher(settings: Settings, topics: Topics) -> Callable[[], AbstractAsyncContextManager[Worker]]:
    """A dispatcher for a block."""
    return lambda: running_dispatcher(settings, topics.events, topics.deliveries)


@pytest_asyncio.fixture
async def start_dispatcher(
    dispatcher: Callable[[], AbstractAsyncContextManager[Worker]],
) -> AsyncIterator[StartDispatcher]:
    """Starts dispatchers in this process; they stop when the test ends."""
    async with AsyncExitStack() as running:
        yield lambda: running.enter_async_context(dispatcher())


@pytest.fixture
def superuser(database: Database) -> Iterator[Session]:
    with closing(Session(database.superuser_url)) as session:
        yield session


async def published(settings: Settings, topics: Topics, wanted: Deliveries) -> list[Published]:
    """Wait until deliveries are published, and return all that are."""
    found: list[Published] = []

    async def are_there() -> bool:
        found[:] = await read_deliveries(settings, topics.deliveries)
        return wanted <= delivered(found)

    await wait_until_async(are_there, lambda: f"{len(wanted)} deliveries: {len(delivered(found))} are published")
    return found


def delivered(found: Sequence[Published]) -> Deliveries:
    return {(each.queued.event_id, EndpointId(each.queued.endpoint_id)) for each in found}


def deliveries(events: Collection[Event], *endpoints: EndpointId) -> Deliveries:
    return {(event.event_id, endpoint_id) for event in events for endpoint_id in endpoints}


async def test_an_event_becomes_a_delivery_for_each_endpoint_that_asks_for_it(
    settings: Settings, topics: Topics, worker: Worker, start_dispatcher: StartDispatcher
) -> None:
    """Once each, under the endpoint's key; others get nothing, and metrics say how many there were."""
    everything = await add_endpoint(settings, 1)
    rated = await add_endpoint(settings, 2, event_types=["genesis.agent.rated"])
    await add_endpoint(settings, 3, event_types=["genesis.team.formed"])
    running = await start_dispatcher()
    await wait_until_async(lambda: len(running.positions()) == 4, "it has its partitions, whose logs are empty")
    events = some_events(300)
    fill(settings, topics.events, iter(events))
    wanted = deliveries(events, everything)
    wanted |= deliveries([each for each in events if each.event_type == "genesis.agent.rated"], rated)

    found = await published(settings, topics, wanted)

    assert len(found) == len(wanted)
    assert delivered(found) == wanted
    assert {each.queued.stream for each in found} == {"live"}
    assert all(each.key == str(each.queued.endpoint_id).encode() for each in found)
    await wait_until_async(lambda: all(at == end for at, end in running.positions().values()), "it has caught up")
    gauges = DispatcherGauges()
    gauges.update(running)
    exposed = generate_latest().decode()
    assert f'plant_dispatcher_lag{{partition="0",topic="{topics.events}"}} 0.0' in exposed
    assert f'plant_dispatcher_events_total{{topic="{topics.events}"}} 300.0' in exposed
    assert 'plant_dispatcher_endpoints{state="active"} 3.0' in exposed


async def test_an_endpoint_that_comes_later_misses_nothing_after_its_start(
    settings: Settings, topics: Topics, worker: Worker, start_dispatcher: StartDispatcher
) -> None:
    """Though the dispatcher had passed its start: it is told of the endpoint, and reads again what it had passed. So it
    is with a start in the past.
    """
    first = await add_endpoint(settings, 1)
    await start_dispatcher()
    before, since = some_events(200), some_events(200, seed=2)
    fill(settings, topics.events, iter(before))
    former = await published(settings, topics, deliveries(before, first))
    newest = {each.queued.source_partition: each.queued for each in sorted(former, key=lambda each: each.order)}
    ends = [newest[partition].source_offset + 1 for partition in range(4)]

    past = await add_endpoint(settings, 2)
    some_past = await add_endpoint(settings, 3, starts=[end - 1 for end in ends])
    new = await add_endpoint(settings, 4, starts=ends)
    fill(settings, topics.events, iter(since))

    wanted = deliveries([*before, *since], first, past) | deliveries(since, some_past, new)
    wanted |= {(queued.event_id, some_past) for queued in newest.values()}
    found = await published(settings, topics, wanted)
    assert delivered(found) == wanted
    assert len(found) == len(wanted)
    backfilled = [each for each in found if each.queued.stream == "backfill"]
    assert {each.queued.endpoint_id for each in backfilled} >= {past, some_past}


async def test_backfills_keep_to_the_rate_of_the_settings(
    settings: Settings, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a second: a slice uses up the time of many seconds, and the next one waits for it; live events do not."""
    now = 0.0
    monkeypatch.setattr(dispatcher_service, "time", SimpleNamespace(monotonic=lambda: now))
    topics = Topics(await make_topic(1), await make_topic(family="genesis.deliveries"))
    events, later = some_events(SLICE_EVENTS_MAX + 100), some_events(10, seed=2)
    slow = msgspec.structs.replace(settings, dispatcher_backfill_per_second=1)

    async def backfilled() -> int:
        found = await read_deliveries(settings, topics.deliveries)
        return sum(each.queued.stream == "backfill" for each in found)

    async with AsyncExitStack() as running:
        worker = build_worker(settings, [topics.events])
        await worker.start()
        running.push_async_callback(worker.stop)
        dispatching = await running.enter_async_context(running_dispatcher(slow, topics.events, topics.deliveries))
        fill(settings, topics.events, iter(events))
        await wait_until_async(
            lambda: [at for at, _ in dispatching.positions().values()] == [len(events)], "it has passed all events"
        )
        endpoint_id = await add_endpoint(settings, 1)
        await wait_until_async(backfilled, "the endpoint is given a first slice")
        fill(settings, topics.events, iter(later))
        await published(settings, topics, deliveries(later, endpoint_id))
        assert await backfilled() == SLICE_EVENTS_MAX
        now = float(SLICE_EVENTS_MAX)
        await published(settings, topics, deliveries([*events, *later], endpoint_id))


async def test_a_dispatcher_that_begins_again_earlier_writes_copies_in_their_order(
    settings: Settings, topics: Topics, worker: Worker, superuser: Session,
    dispatcher: Callable[[], AbstractAsyncContextManager[Worker]],
) -> None:  # fmt: skip
    """A reader that takes what is above the highest that it has seen takes each delivery once, and all."""
    first, second = await add_endpoint(settings, 1), await add_endpoint(settings, 2)
    events, later = some_events(300), some_events(100, seed=2)
    async with dispatcher():
        fill(settings, topics.events, iter(events))
        await published(settings, topics, deliveries(events, first, second))
    superuser.execute("UPDATE checkpoints SET next_offset = 20 WHERE consumer = 'dispatcher'")
    third = await add_endpoint(settings, 3)

    async with dispatcher():
        fill(settings, topics.events, iter(later))
        wanted = deliveries([*events, *later], first, second, third)
        found = await published(settings, topics, wanted)

    taken = without_copies(found)
    assert len(found) > len(taken)
    assert len(taken) == len(wanted)
    assert delivered(taken) == wanted


async def test_two_dispatchers_share_the_partitions_and_one_takes_over(
    settings: Settings, topics: Topics, worker: Worker, start_dispatcher: StartDispatcher,
    dispatcher: Callable[[], AbstractAsyncContextManager[Worker]],
) -> None:  # fmt: skip
    """Each event is dispatched, and copies can be told."""
    endpoint_id = await add_endpoint(settings, 1)
    kinds = [some_events(300, seed=seed) for seed in (1, 2, 3)]
    async with dispatcher() as first:
        fill(settings, topics.events, iter(kinds[0]))
        await published(settings, topics, deliveries(kinds[0], endpoint_id))
        second = await start_dispatcher()
        await wait_until_async(lambda: len(second.positions()) == 2, "the second has two partitions")
        fill(settings, topics.events, iter(kinds[1]))
        await published(settings, topics, deliveries(kinds[1], endpoint_id))
        assert len(first.positions()) == 2
    fill(settings, topics.events, iter(kinds[2]))
    found = await published(settings, topics, deliveries(kinds[2], endpoint_id))
    taken = without_copies(found)
    assert len(taken) == 900
    assert delivered(taken) == deliveries([event for each in kinds for event in each], endpoint_id)
