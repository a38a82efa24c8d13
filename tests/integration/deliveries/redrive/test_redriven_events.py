"""What operators order is sent again: by a dispatcher, a deliverer and a recorder that are real."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio

from database.connector import connect
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.endpoint_store import open_endpoint_store
from deliveries.errors import DeliveriesBehind, NothingToRedrive, UnknownDeliveries
from deliveries.redrive import missing_deliveries
from deliveries.redrive.missing_deliveries import DeliveryTopicNames, MissingDelivery, MissingSearch
from deliveries.redrive.orders import Redrives
from deliveries.redrive.selection import RedriveSelection
from deliveries.state.delivery_rows import DeliveryFilter
from devstack import sql
from operations.services.dispatcher import running_dispatcher
from operations.services.worker import build_worker
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.delivering import LOCAL, add_endpoint, delivering, delivery_topics
from tests.support.load import events, fill
from tests.support.receivers import Receiver, receiver
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import wait_until_async

EVENTS = 60
ALL_DELIVERED = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'"
DISPATCHED = "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = 'dispatcher'"
DEAD_THIRD = """
UPDATE webhook_deliveries SET state = 'dead' WHERE id IN (
    SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM webhook_deliveries) AS d WHERE n % 3 = 0
) RETURNING id::text
"""


@pytest_asyncio.fixture
async def local(settings: Settings) -> AsyncIterator[Settings]:
    """Settings with which endpoints may be on this machine."""
    yield msgspec.structs.replace(settings, **LOCAL)


@pytest_asyncio.fixture
async def topics(local: Settings) -> AsyncIterator[DeliveryTopics]:
    """Topics of a test's own."""
    async with delivery_topics(local, 4) as made:
        yield made


async def value(database: Database, query: str) -> Any:
    """Return what a query returns, or the rows of a change."""
    return await asyncio.to_thread(sql.value, database.superuser_url, query)


async def delivered_and_dead(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, there: Receiver
) -> set[str]:
    """Deliver events, then have a third of their deliveries recorded as dead; return the ids of these."""
    await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    async with (
        contextlib.AsyncExitStack() as stack,
        running_dispatcher(local, topic, topics.deliveries),
        delivering(local, topics),
    ):
        worker = build_worker(local, [topic])
        stack.push_async_callback(worker.stop)
        await worker.start()
        fill(local, topic, events(EVENTS, agents=10))

        async def delivered() -> bool:
            return bool(await value(database, ALL_DELIVERED) == EVENTS)

        await wait_until_async(delivered, "all are recorded as delivered")
    await value(database, DEAD_THIRD)
    query = "SELECT string_agg(id::text, ' ') FROM webhook_deliveries WHERE state = 'dead'"
    return set((await value(database, query)).split())


async def finished(redrives: Redrives, number: int) -> bool:
    """Return whether all of an order is on Kafka, and an attempt of each was recorded."""
    found = await redrives.find(number)
    return found.state == "finished" and (await redrives.recorded(number)).get("delivered") == found.deliveries


def sent_ids(there: Receiver) -> Counter[str]:
    """Return how often each delivery was sent."""
    return Counter(headers["webhook-id"] for _, _, headers, _ in there.requests)


async def test_dead_letters_are_delivered_and_nothing_else(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """Each once, with the body and id that it had; ordered twice, they are sent once, and once more when asked for."""
    async with receiver() as there, open_redrives(local) as redrives:
        dead = await delivered_and_dead(local, database, topic, topics, there)
        before = {headers["webhook-id"]: body for _, _, headers, body in there.requests}
        plan = await redrives.plan(RedriveSelection())
        number = await redrives.order(redrive_order(), RedriveSelection())
        again = await redrives.plan(RedriveSelection())
        with pytest.raises(NothingToRedrive):
            await redrives.order(redrive_order(), RedriveSelection())
        async with running_dispatcher(local, topic, topics.deliveries), delivering(local, topics):

            async def first() -> bool:
                return await finished(redrives, number)

            await wait_until_async(first, "the first order is delivered")
            one = next(iter(dead))
            selection = RedriveSelection(delivery_ids=(UUID(one),), states=("delivered",))
            second_number = await redrives.order(redrive_order(), selection)

            async def second() -> bool:
                return await finished(redrives, second_number)

            await wait_until_async(second, "the second order is delivered")
        orders = await redrives.newest()
    assert (plan.deliveries, again.deliveries, again.left_out) == (EVENTS // 3, 0, {"ordered": EVENTS // 3})
    wanted = {each: 1 + (each in dead) + (each == one) for each in before}
    assert sent_ids(there) == wanted
    assert all(body == before[headers["webhook-id"]] for _, _, headers, body in there.requests)
    assert [(each.number, each.state, each.deliveries, each.queued, each.unfound) for each in orders] == [
        (second_number, "finished", 1, 1, 0), (number, "finished", EVENTS // 3, EVENTS // 3, 0)
    ]  # fmt: skip
    redriven = "SELECT sum(redriven) FROM webhook_deliveries WHERE state = 'delivered'"
    assert await value(database, redriven) == EVENTS // 3 + 1


async def test_a_stopped_order_sends_nothing_more(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """What it had not sent may be ordered again."""
    async with receiver() as there, open_redrives(local) as redrives:
        dead = await delivered_and_dead(local, database, topic, topics, there)
        number = await redrives.order(redrive_order(), RedriveSelection())
        assert await redrives.stop(number)
        assert not await redrives.stop(number)
        narrow = RedriveSelection(filter=DeliveryFilter(type="genesis.agent.available"))
        planned = (await redrives.plan(narrow)).deliveries
        second_number = await redrives.order(redrive_order(), RedriveSelection())
        async with running_dispatcher(local, topic, topics.deliveries), delivering(local, topics):

            async def second() -> bool:
                return await finished(redrives, second_number)

            await wait_until_async(second, "the second order is delivered")
        stopped = await redrives.find(number)
    assert 0 <= planned <= len(dead)
    assert (stopped.state, stopped.queued) == ("stopped", 0)
    assert sum(sent_ids(there).values()) == EVENTS + len(dead)


async def found_missing(
    local: Settings, topic: str, topics: DeliveryTopics, endpoint_id: UUID
) -> tuple[MissingSearch, list[MissingDelivery]]:
    """Return a search that has looked at all of the log, and what it has found."""
    names = DeliveryTopicNames(topic, topics.deliveries, topics.attempts)
    database = connect(local, "operator")
    try:
        async with open_endpoint_store(local) as store:
            search = MissingSearch(local, database, await store.find(endpoint_id), names)
        now = datetime.now(UTC)
        await search.prepare(now - timedelta(days=2), now)
        return search, [each async for each in search.missing()]
    finally:
        await database.close()


async def test_what_was_published_during_a_pause_is_replayed(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cancelled as its endpoint was paused, and what was not even dispatched; nothing is sent twice."""
    monkeypatch.setattr(missing_deliveries, "BEHIND_TIMEOUT_SECONDS", 1.0)
    async with (
        receiver() as there,
        contextlib.AsyncExitStack() as stack,
        open_redrives(local) as redrives,
        open_endpoint_store(local) as store,
    ):
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        worker = build_worker(local, [topic])
        stack.push_async_callback(worker.stop)
        await worker.start()
        await stack.enter_async_context(running_dispatcher(local, topic, topics.deliveries))
        made = list(events(90, agents=10))
        fill(local, topic, made[:30])

        async def dispatched() -> bool:
            return bool(await value(database, DISPATCHED) == 30)

        await wait_until_async(dispatched, "the first events are dispatched")
        with pytest.raises(DeliveriesBehind):
            await found_missing(local, topic, topics, endpoint_id)
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) == 30, "the first events are delivered")
        await store.change_state(endpoint_id, "pause", "A test.")
        fill(local, topic, made[30:60])
        async with delivering(local, topics):

            async def passed() -> bool:
                return bool(await value(database, DISPATCHED) == 60)

            await wait_until_async(passed, "the dispatcher has passed the pause")
            monkeypatch.setattr(missing_deliveries, "BEHIND_TIMEOUT_SECONDS", 300.0)
            await found_missing(local, topic, topics, endpoint_id)
            await store.change_state(endpoint_id, "resume", "A test.")
            await asyncio.to_thread(fill, local, topic, made[60:])
            search, missing = await found_missing(local, topic, topics, endpoint_id)
            order = redrive_order(kind="replay_missing")
            async with redrives.open_order(order) as new:
                await new.add_missing(endpoint_id, missing)
            again = (await found_missing(local, topic, topics, endpoint_id))[1]

            # Not all that is delivered: what was published since may be, before what was missing.
            ids = ",".join(str(each.delivery_id) for each in missing)
            ordered = f"SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered' AND id = ANY ('{{{ids}}}')"

            async def all_delivered() -> bool:
                return bool(await value(database, ordered) == len(missing))

            await wait_until_async(all_delivered, "what was missing is delivered")
            rest = (await found_missing(local, topic, topics, endpoint_id))[1]
    assert search.checked >= 60
    assert 30 <= len(missing) <= 60
    assert {each.event_id for each in missing} >= {each.event_id for each in made[30:60]}
    assert [each for each in again if not each.ordered and each in missing] == []
    assert {each.event_id for each in rest}.isdisjoint({each.event_id for each in missing})
    assert set(sent_ids(there).values()) == {1}


async def test_what_nobody_knows_is_not_called_nothing(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """An endpoint that no dispatcher has heard of, and times of which no deliveries are kept."""
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:1/")
    with pytest.raises(DeliveriesBehind, match="No dispatcher has heard"):
        await found_missing(local, topic, topics, endpoint_id)
    short = msgspec.structs.replace(local, deliveries_keep_days=2)
    with pytest.raises(UnknownDeliveries):
        await found_missing(short, topic, topics, endpoint_id)
