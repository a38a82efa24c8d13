"""From an event that is published to a request at its subscriber, and the rows that say so: every part is real."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest_asyncio
from aiohttp import web

from devstack import sql
from operations.services.dispatcher import running_dispatcher
from operations.services.worker import build_worker
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.delivering import LOCAL, add_endpoint, delivering, delivery_topics
from tests.support.load import events, fill
from tests.support.receivers import receiver
from tests.support.waiting import wait_until_async

EVENTS = 120


@pytest_asyncio.fixture
async def local(settings: Settings) -> AsyncIterator[Settings]:
    """Settings with which endpoints may be on this machine."""
    yield msgspec.structs.replace(settings, **LOCAL)


async def test_every_applied_event_is_delivered_to_each_endpoint(
    local: Settings, database: Database, topic: str
) -> None:
    """Once, to each of three endpoints, one of which fails at first; state and attempts are there to look up."""
    async with contextlib.AsyncExitStack() as stack:
        topics = await stack.enter_async_context(delivery_topics(local, 4))
        good, failing = [await stack.enter_async_context(receiver()) for _ in range(2)]
        failures = iter([500] * 5)
        failing.answer = lambda: web.Response(status=next(failures, 204))  # type: ignore[assignment]
        for url in (f"http://127.0.0.1:{good.port}/a", f"http://127.0.0.1:{good.port}/b"):
            await add_endpoint(local, url)
        await add_endpoint(local, f"http://127.0.0.1:{failing.port}/")
        worker = build_worker(local, [topic])
        stack.push_async_callback(worker.stop)
        await worker.start()
        await stack.enter_async_context(running_dispatcher(local, topic, topics.deliveries))
        await stack.enter_async_context(delivering(local, topics))
        fill(local, topic, events(EVENTS, agents=10))
        await wait_until_async(lambda: len(good.requests) >= 2 * EVENTS, "the good ones have all")

        def delivered() -> bool:
            query = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'"
            return int(sql.value(database.superuser_url, query)) == 3 * EVENTS

        await wait_until_async(delivered, "all are recorded as delivered")
    assert Counter((path, headers["webhook-id"]) for _, path, headers, _ in good.requests).total() == 2 * EVENTS
    assert len({headers["webhook-id"] for _, _, headers, _ in good.requests}) == 2 * EVENTS
    assert len({headers["webhook-id"] for _, _, headers, _ in failing.requests}) == EVENTS
    assert len(failing.requests) == EVENTS + 5
    made = "SELECT count(*) FROM webhook_attempts WHERE outcome <> 'postponed'"  # an endpoint that is slow gets fewer
    assert sql.value(database.superuser_url, made) == 3 * EVENTS + 5
    assert sql.value(database.superuser_url, "SELECT count(*) FROM delivery_waits") == 0
