"""What changes about an endpoint is told to those who ask for it, once, and never to itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.failure_streak import StreakPolicy
from devstack import sql
from operations.services import deliverer
from operations.services.dispatcher import running_dispatcher
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.delivering import (
    LOCAL,
    add_endpoint,
    change_state,
    delivering,
    delivery_topics,
    publish,
    queued,
    read_values,
)
from tests.support.receivers import Receiver, receiver
from tests.support.waiting import wait_until_async

PATTERN = ("plant.endpoint.*",)
UNSENT = "SELECT count(*) FROM endpoint_events WHERE sent_at IS NULL"


@pytest_asyncio.fixture
async def local(settings: Settings) -> AsyncIterator[Settings]:
    """Settings with which endpoints may be on this machine."""
    yield msgspec.structs.replace(settings, **LOCAL)


@pytest_asyncio.fixture
async def topics(local: Settings) -> AsyncIterator[DeliveryTopics]:
    async with delivery_topics(local) as made:
        yield made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four failed attempts in any time disable an endpoint."""
    policy = StreakPolicy(failing_time=timedelta(microseconds=1), attempts_min=4)
    monkeypatch.setattr(deliverer, "make_streak_policy", lambda _: policy)


@contextlib.asynccontextmanager
async def running(local: Settings, topic: str, topics: DeliveryTopics) -> AsyncIterator[None]:
    """Run a dispatcher and a deliverer."""
    async with (
        running_dispatcher(local, topic, topics.deliveries, topics.endpoint_events),
        delivering(local, topics),
    ):
        yield


def told(there: Receiver, path: str = "/") -> list[tuple[Any, ...]]:
    """Return what came at a path: type, endpoint, and what there is beside."""
    bodies = [msgspec.json.decode(body) for _, where, _, body in there.requests if where == path]
    return [(each["type"].removeprefix("plant.endpoint."), each["data"]["endpoint_id"]) for each in bodies]


async def test_those_who_ask_are_told_of_an_endpoint_that_fails(
    local: Settings, topic: str, topics: DeliveryTopics, database: Database
) -> None:
    """In order, of each change once; neither the endpoint itself is told, nor who asks for all Genesis events."""
    async with receiver() as there, receiver() as failing:
        failing.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        itself = await add_endpoint(local, f"http://127.0.0.1:{failing.port}/", event_types=("*", *PATTERN))
        await add_endpoint(local, f"http://127.0.0.1:{there.port}/all")
        await add_endpoint(local, f"http://127.0.0.1:{there.port}/", event_types=PATTERN, ordering="per_entity")
        only = {"event_types": ("plant.endpoint.warned",), "filter": {"percent": [90, 100]}}
        await add_endpoint(local, f"http://127.0.0.1:{there.port}/late", **only)
        await publish(local, topics.deliveries, [queued(itself, 1)])
        async with running(local, topic, topics):
            await wait_until_async(lambda: len(told(there)) == 5 and len(told(there, "/late")) == 2, "all are told")
            await change_state(local, itself, "enable", "pause")
            await wait_until_async(lambda: len(told(there)) == 7, "changes by operators too")
            await wait_until_async(lambda: sql.value(database.superuser_url, UNSENT) == 0, "all are marked")
    names = ["warned", "warned", "warned", "warned", "disabled", "enabled", "paused"]
    assert told(there) == [(name, str(itself)) for name in names]
    percents = [msgspec.json.decode(body)["data"]["percent"] for _, path, _, body in there.requests if path == "/late"]
    assert sorted(percents) == [90, 100]
    assert told(there, "/all") == []
    assert {msgspec.json.decode(body)["type"] for _, _, _, body in failing.requests} == {"genesis.agent.available"}
    events = await read_values(local, topics.endpoint_events)
    assert [each.event_type.removeprefix("plant.endpoint.") for each in events] == names
    assert {each.endpoint_id for each in events} == {itself}
    assert events[-1].reason == "Test: pause"


async def test_two_endpoints_that_fail_and_ask_for_each_other_make_no_loop(
    local: Settings, topic: str, topics: DeliveryTopics, database: Database
) -> None:
    """A delivery that tells of an endpoint counts neither as a failure nor as a success."""
    async with receiver() as first, receiver() as second:
        for each in (first, second):
            each.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        one = await add_endpoint(local, f"http://127.0.0.1:{first.port}/", event_types=("*", *PATTERN))
        await add_endpoint(local, f"http://127.0.0.1:{second.port}/", event_types=PATTERN)
        await publish(local, topics.deliveries, [queued(one, 1)])
        async with running(local, topic, topics):
            failed = """
                SELECT count(*) FROM webhook_attempts AS a JOIN webhook_deliveries AS d ON d.id = a.delivery_id
                WHERE d.type LIKE 'plant.%' AND a.outcome = 'failed'
            """
            await wait_until_async(lambda: sql.value(database.superuser_url, failed) >= 6, "more fail than disable")
            disabled = "SELECT count(*) FROM endpoint_events WHERE type = 'plant.endpoint.disabled'"
            await wait_until_async(lambda: sql.value(database.superuser_url, disabled) == 1, "one is disabled")
    assert sql.value(database.superuser_url, "SELECT count(*) FROM endpoint_events") == 5
    assert sql.value(database.superuser_url, "SELECT count(DISTINCT endpoint_id) FROM endpoint_events") == 1
    assert {msgspec.json.decode(body)["type"] for _, _, _, body in first.requests} == {"genesis.agent.available"}


async def test_what_is_published_again_is_told_once(
    local: Settings, topic: str, topics: DeliveryTopics, database: Database
) -> None:
    """A dispatcher that is killed before it marks what it has published leaves copies, to those it was told to."""
    async with receiver() as there:
        subject = await add_endpoint(local, "http://127.0.0.1:9/")
        await add_endpoint(local, f"http://127.0.0.1:{there.port}/", event_types=PATTERN)
        await change_state(local, subject, "pause", "resume")
        async with running(local, topic, topics):
            await wait_until_async(lambda: len(told(there)) == 2, "both are told")
            await wait_until_async(lambda: sql.value(database.superuser_url, UNSENT) == 0, "both are marked")
        late = await add_endpoint(local, f"http://127.0.0.1:{there.port}/late", event_types=PATTERN)
        sql.execute(database.superuser_url, ["UPDATE endpoint_events SET sent_at = NULL"])
        await change_state(local, subject, "pause")
        async with running(local, topic, topics):
            await wait_until_async(lambda: len(told(there)) == 3 and told(there, "/late"), "the third one is told")
            await wait_until_async(lambda: sql.value(database.superuser_url, UNSENT) == 0, "all are marked")
    assert sorted(told(there)) == [(name, str(subject)) for name in ("paused", "paused", "resumed")]
    assert told(there, "/late") == [("paused", str(subject))], f"{late} came after the others"
    events = await read_values(local, topics.endpoint_events)
    assert len(events) == 5
    assert len({each.event_id for each in events}) == 3
