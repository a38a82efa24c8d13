"""What an endpoint's answers and choices do to its deliveries, and what they don't do to those of others."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from uuid import uuid4

import msgspec
import pytest_asyncio
from aiohttp import web

from database.connector import connect
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.endpoint_store import EndpointStore
from devstack import sql
from runtime.settings import Settings
from schemas.delivery_records import DeliveryAttempted
from signing.master_key import MasterKeys
from tests.conftest import Database
from tests.support.delivering import (
    add_endpoint,
    attempts_of,
    delivering,
    delivery_topics,
    publish,
    queued,
)
from tests.support.receivers import Receiver, receiver
from tests.support.waiting import wait_until_async


@pytest_asyncio.fixture
async def there() -> AsyncIterator[Receiver]:
    """A receiver that accepts all."""
    async with receiver() as made:
        yield made


def ids(there: Receiver) -> Counter[str]:
    """Return how often each delivery came."""
    return Counter(headers["webhook-id"] for _, _, headers, _ in there.requests)


def offsets(there: Receiver) -> list[int]:
    """Return the offsets of the events that came, in order."""
    return [msgspec.json.decode(body)["data"]["offset"] for _, _, _, body in there.requests]


async def attempts(local: Settings, topics: DeliveryTopics, count: int) -> list[DeliveryAttempted]:
    """Return the records of attempts, once there are so many."""

    async def are_there() -> bool:
        return len(await attempts_of(local, topics)) >= count

    await wait_until_async(are_there, f"{count} attempts are recorded")
    return await attempts_of(local, topics)


async def test_copies_are_sent_once(local: Settings, topics: DeliveryTopics, there: Receiver) -> None:
    """A dispatcher that begins again from its checkpoint writes some a second time; so does one that was frozen."""
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    records = [queued(endpoint_id, offset) for offset in range(40)]
    await publish(local, topics.deliveries, [*records[:25], *records[10:30]])
    async with delivering(local, topics):
        await wait_until_async(lambda: len(ids(there)) == 30, "the first ones are sent")
        await publish(local, topics.deliveries, records[5:20])
    await publish(local, topics.deliveries, records[15:])
    async with delivering(local, topics):
        await wait_until_async(lambda: len(ids(there)) == 40, "all are sent")
    assert set(ids(there).values()) == {1}


async def test_a_deliverer_that_stops_leaves_nothing_and_repeats_nothing(
    local: Settings, topics: DeliveryTopics, there: Receiver
) -> None:
    """Attempts under way end before it leaves, and the next one goes on behind them."""
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    records = [queued(endpoint_id, offset) for offset in range(300)]
    await publish(local, topics.deliveries, records)
    for share in (50, 150, 300):
        async with delivering(local, topics):
            await wait_until_async(lambda share=share: len(there.requests) >= share, f"{share} are sent")  # type: ignore[misc]
    assert ids(there) == Counter(str(each.delivery_id) for each in records)


async def test_an_entitys_events_keep_their_order(local: Settings, topics: DeliveryTopics, there: Receiver) -> None:
    """While one fails, those behind it wait, and those of other entities pass."""
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/", ordering="per_entity")
    stuck, others = uuid4(), [uuid4() for _ in range(3)]
    failures = {4: 2, 8: 1}
    seen: dict[int, int] = defaultdict(int)

    async def handle(request: web.Request) -> web.Response:
        offset = msgspec.json.decode(await request.read())["data"]["offset"]
        seen[offset] += 1
        await there_handle(request)
        return web.Response(status=500 if seen[offset] <= failures.get(offset, 0) else 204)

    there_handle = there.handle
    there.replace_handler(handle)
    records = [
        queued(endpoint_id, offset, entity_id=stuck if offset % 2 == 0 else others[offset % 3]) for offset in range(16)
    ]
    await publish(local, topics.deliveries, records)
    async with delivering(local, topics):
        await wait_until_async(lambda: set(offsets(there)) == set(range(16)), "all are sent")
    came = offsets(there)
    of_stuck = [each for each in came if each % 2 == 0]
    assert of_stuck == sorted(of_stuck)
    assert Counter(came) == Counter({**dict.fromkeys(range(16), 1), 4: 3, 8: 2})
    assert max(came.index(each) for each in range(1, 16, 2)) < came.index(6)
    ended = await attempts(local, topics, 16)
    assert Counter(each.state for each in ended)["delivered"] == 16


async def test_an_endpoint_that_is_gone_is_disabled(
    local: Settings, topics: DeliveryTopics, there: Receiver, database: Database
) -> None:
    """After a 410 it gets nothing more; its deliveries are neither waiting nor dead."""
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    there.answer = lambda: web.Response(status=410)  # type: ignore[assignment]
    await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(20)])
    async with delivering(local, topics):
        ended = await attempts(local, topics, 20)
        asked = len(there.requests)
        await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(20, 30)])
        ended = await attempts(local, topics, 30)
    assert {each.state for each in ended} == {"cancelled"}
    assert len(there.requests) == asked < 20
    assert sql.value(database.superuser_url, "SELECT state FROM endpoints") == "disabled"
    assert sql.value(database.superuser_url, "SELECT count(*) FROM delivery_waits") == 0


async def test_a_paused_endpoint_gets_nothing(local: Settings, topics: DeliveryTopics, there: Receiver) -> None:
    """What is queued for it is given up, not retried."""
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    operator = connect(local, "operator")
    try:
        await EndpointStore(operator, MasterKeys(local)).change_state(endpoint_id, "pause", "for tests")
    finally:
        await operator.close()
    await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(5)])
    async with delivering(local, topics):
        ended = await attempts(local, topics, 5)
    assert [(each.outcome, each.why) for each in ended] == [("cancelled", "The endpoint is paused.")] * 5
    assert there.requests == []


async def test_a_long_wait_is_in_postgres(
    local: Settings, topics: DeliveryTopics, there: Receiver, database: Database
) -> None:
    """What an endpoint asks for beyond the longest retry topic, and all its other deliveries meanwhile."""
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    there.answer = lambda: web.Response(status=503, headers={"Retry-After": "600"})  # type: ignore[assignment]
    await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(10)])
    async with delivering(local, topics):
        await attempts(local, topics, 10)
    rows = "SELECT count(*) FROM delivery_waits WHERE record IS NOT NULL AND due_at > now() + interval '300 s'"
    assert sql.value(database.superuser_url, rows) == 10
    assert len(there.requests) == 1
    there.answer = web.Response
    over = ["UPDATE delivery_waits SET due_at = now()", "UPDATE endpoint_throttles SET throttled_until = now()"]
    sql.execute(database.superuser_url, over)
    async with delivering(local, topics):
        await wait_until_async(lambda: len(ids(there)) == 10, "they are sent once they are due")
    assert sql.value(database.superuser_url, "SELECT count(*) FROM delivery_waits") == 0


async def test_an_endpoint_that_hangs_holds_up_no_other(
    local: Settings, topics: DeliveryTopics, there: Receiver
) -> None:
    """Those of another endpoint, behind many of it in one partition, are sent while it hangs."""
    released = asyncio.Event()
    async with receiver() as hanging:

        async def hang(_request: web.Request) -> web.Response:
            await released.wait()
            return web.Response(status=204)

        hanging.replace_handler(hang)
        slow_id = await add_endpoint(local, f"http://127.0.0.1:{hanging.port}/")
        quick = sorted([await add_endpoint(local, f"http://127.0.0.1:{there.port}/") for _ in range(4)])
        records = [queued(slow_id, offset) for offset in range(200)]
        records += [queued(each, offset) for offset in range(200, 220) for each in quick]
        await publish(local, topics.deliveries, records)
        async with delivering(local, topics):
            await wait_until_async(lambda: len(there.requests) == 80, "all of the others are sent")
            released.set()


async def test_an_endpoint_has_as_many_attempts_under_way_as_the_setting_says(local: Settings, there: Receiver) -> None:
    """After a success too, which lets it have one more up to there; another endpoint's delivery passes those behind."""
    released = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        await there_handle(request)
        if len(there.requests) > 1:
            await released.wait()
        return web.Response(status=204)

    there_handle = there.handle
    there.replace_handler(handle)
    url = f"http://127.0.0.1:{there.port}/"
    endpoint_id, other_id = await add_endpoint(local, url), await add_endpoint(local, url)
    one_at_a_time = msgspec.structs.replace(local, deliverer_attempts_per_endpoint=1)
    async with delivery_topics(local, 1) as topics, delivering(one_at_a_time, topics) as deliverer:
        await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(5)])
        await wait_until_async(lambda: len(there.requests) >= 2, "one has arrived, and the next one is under way")
        await publish(local, topics.deliveries, [queued(other_id, 5)])
        await wait_until_async(lambda: 5 in offsets(there), "that of the other endpoint, behind all, is under way")
        under_way = deliverer.process.slots.under_way
        released.set()
        assert under_way <= 2, "one of each"
        await wait_until_async(lambda: set(offsets(there)) == set(range(6)), "all are sent")


async def test_what_waits_in_postgres_is_put_off_once(
    local: Settings, topics: DeliveryTopics, there: Receiver, database: Database
) -> None:
    """An endpoint that is slow time and again, while events come in for it, costs no record a row and time."""
    came = 0

    async def handle(_request: web.Request) -> web.Response:
        nonlocal came
        came += 1
        await asyncio.sleep(1.5 if came <= 5 else 0.0)
        return web.Response(status=204)

    there.replace_handler(handle)
    endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
    await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(200)])
    count = 200
    async with delivering(local, topics):
        while came <= 5:  # each finds the endpoint slow, and puts off what is in its queue
            await publish(local, topics.deliveries, [queued(endpoint_id, count)])
            count += 1
            await asyncio.sleep(0.1)
        await wait_until_async(lambda: came >= count, "all are sent")
    ended = await attempts_of(local, topics)
    times = Counter(each.delivery_id for each in ended if each.outcome == "postponed")
    assert len(times) > 100
    assert set(times.values()) == {1}
    assert Counter(each.outcome for each in ended)["delivered"] == count
    assert sql.value(database.superuser_url, "SELECT count(*) FROM delivery_waits") == 0
