"""An endpoint that fails is warned and disabled, and what is told of it is in its row's transaction."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.deliverer.endpoint_streaks import EndpointChange, EndpointStreak, StreakChanges
from deliveries.deliverer.streak_rows import streak_statements
from deliveries.failure_streak import FailureStreak, FailureWarning, StreakPolicy
from devstack import sql
from operations.services import deliverer
from projections.session import Session
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.delivering import LAST_ATTEMPT, add_endpoint, change_state, delivering, publish, queued
from tests.support.receivers import Receiver, receiver
from tests.support.waiting import wait_until_async

EVENTS = """
SELECT coalesce(string_agg(replace(type, 'plant.endpoint.', '') || coalesce(' ' || percent, ''), ', ' ORDER BY id), '')
FROM endpoint_events
"""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four failed attempts in any time disable an endpoint."""
    policy = StreakPolicy(failing_time=timedelta(microseconds=1), attempts_min=4)
    monkeypatch.setattr(deliverer, "make_streak_policy", lambda _: policy)


def fail_first(there: Receiver, failures: int) -> None:
    answers = iter([500] * failures)
    there.answer = lambda: web.Response(status=next(answers, 204))  # type: ignore[assignment]


@pytest.mark.usefixtures("soon")
async def test_an_endpoint_that_keeps_failing_is_disabled(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """With a warning at each step, and its reason; what is due then is cancelled."""
    async with receiver() as there:
        there.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
        async with delivering(local, topics):

            def is_disabled() -> bool:
                return sql.value(database.superuser_url, "SELECT state FROM endpoints") == "disabled"

            await wait_until_async(is_disabled, "it is disabled")
            await publish(local, topics.deliveries, [queued(endpoint_id, 2)])
            cancelled = "SELECT count(*) FROM webhook_deliveries WHERE state = 'cancelled'"
            await wait_until_async(lambda: sql.value(database.superuser_url, cancelled) == 2, "both are cancelled")
    assert len(there.requests) == 4
    assert sql.value(database.superuser_url, EVENTS) == "warned 50, warned 70, warned 90, warned 100, disabled"
    reason = sql.value(database.superuser_url, "SELECT state_reason FROM endpoints")
    since = sql.value(
        database.superuser_url,
        "SELECT to_char(began_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM endpoint_streaks",
    )
    assert reason == f"No attempt has succeeded since {since}."
    query = "SELECT reason FROM endpoint_events WHERE type = 'plant.endpoint.disabled'"
    assert sql.value(database.superuser_url, query) == reason


@pytest.mark.usefixtures("soon")
async def test_an_endpoint_that_recovers_has_no_streak(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """Its recovery is told, and it starts again from nothing."""
    async with receiver() as there:
        fail_first(there, 3)
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
        async with delivering(local, topics):
            recovered = "SELECT count(*) FROM endpoint_events WHERE type = 'plant.endpoint.recovered'"
            await wait_until_async(lambda: sql.value(database.superuser_url, recovered) == 1, "it recovers")
    assert sql.value(database.superuser_url, EVENTS) == "warned 50, warned 70, recovered"
    assert sql.value(database.superuser_url, "SELECT count(*) FROM endpoint_streaks") == 0


@pytest.mark.usefixtures("soon")
async def test_the_next_owner_goes_on_with_a_streak(
    local: Settings, topics: DeliveryTopics, database: Database
) -> None:
    """Failures of one deliverer and of the next are one streak."""
    async with receiver() as there:
        fail_first(there, 3)
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
        for warned in (50, 70):
            async with delivering(local, topics):
                query = f"SELECT count(*) FROM endpoint_streaks WHERE warned_percent = {warned}"
                await wait_until_async(lambda q=query: sql.value(database.superuser_url, q) == 1, f"warned at {warned}")
    assert sql.value(database.superuser_url, EVENTS) == "warned 50, warned 70"


@pytest.mark.usefixtures("soon")
async def test_enabling_begins_again(local: Settings, topics: DeliveryTopics, database: Database) -> None:
    """The streak from before is gone, also in the memory of a deliverer that goes on."""
    async with receiver() as there:
        fail_first(there, 5)
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        # In their last attempt: a retry would be the fourth failure of the streak, perhaps before the enabling.
        last = [queued(endpoint_id, offset, attempt=LAST_ATTEMPT) for offset in range(1, 4)]
        await publish(local, topics.deliveries, last)
        async with delivering(local, topics) as deliverer:
            streak = "SELECT count(*) FROM endpoint_streaks WHERE warned_percent = 70"
            await wait_until_async(lambda: sql.value(database.superuser_url, streak) == 1, "it is warned")
            await change_state(local, endpoint_id, "disable", "enable")
            assert sql.value(database.superuser_url, "SELECT count(*) FROM endpoint_streaks") == 0

            def has_heard() -> bool:
                known = deliverer.process.endpoints.get(endpoint_id.bytes)
                return known is not None and known.endpoint.enabled_at is not None

            await wait_until_async(has_heard, "the deliverer has heard of it")
            await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(4, 7)])
            await wait_until_async(lambda: len(there.requests) >= 8, "all are delivered")
            none = "SELECT (SELECT count(*) FROM endpoint_streaks) + (SELECT count(*) FROM delivery_waits)"
            await wait_until_async(lambda: sql.value(database.superuser_url, none) == 0, "the streak ends")
    events = str(sql.value(database.superuser_url, EVENTS))
    assert events.startswith("warned 50, warned 70, disabled, enabled")
    assert "warned 100" not in events


async def test_each_change_of_state_is_told_once(local: Settings, database: Database) -> None:
    """By whomever it is made, with its reason; what changes nothing tells nothing."""
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:9/")
    await change_state(local, endpoint_id, "pause", "resume", "pause", "disable", "enable")
    sql.execute(database.superuser_url, ["UPDATE endpoints SET state = 'active', rate_per_second = 5"])
    await change_state(local, endpoint_id, "remove")
    assert sql.value(database.superuser_url, EVENTS) == "paused, resumed, paused, disabled, enabled, removed"
    reasons = sql.value(database.superuser_url, "SELECT string_agg(reason, ', ' ORDER BY id) FROM endpoint_events")
    assert reasons == ", ".join(
        f"Test: {action}" for action in ("pause", "resume", "pause", "disable", "enable", "remove")
    )


async def test_what_failed_before_the_enabling_is_not_stored_after_it(local: Settings, database: Database) -> None:
    """A deliverer hears of the enabling a moment later: what it writes until then changes nothing."""
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:9/")
    await change_state(local, endpoint_id, "disable", "enable")
    began_at = datetime(2026, 3, 1, tzinfo=UTC)
    stale = StreakChanges(
        kept={endpoint_id.bytes: EndpointStreak(FailureStreak(began_at=began_at, attempts=1), None)},
        notes=[EndpointChange(endpoint_id.bytes, None, began_at, FailureWarning(100))],
    )
    with contextlib.closing(Session(local.database_address("deliverer"))) as session:
        session.script("BEGIN", *streak_statements(0, stale), "COMMIT")
    assert sql.value(database.superuser_url, "SELECT count(*) FROM endpoint_streaks") == 0
    assert sql.value(database.superuser_url, EVENTS) == "disabled, enabled"
    assert sql.value(database.superuser_url, "SELECT state FROM endpoints") == "active"


async def test_an_endpoint_that_refuses_some_for_ever_gets_the_others(local: Settings, topics: DeliveryTopics) -> None:
    """Its breaker opens, and what waits first is what it refuses: it is probed with another one, and has them all."""
    refused: set[str] = set()
    came = []

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        came.append(request.headers["webhook-id"])
        return web.Response(status=422 if came[-1] in refused else 204)

    async with receiver() as there:
        there.replace_handler(answer)
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        bad = [queued(endpoint_id, offset) for offset in range(BreakerPolicy().attempts_min)]
        good = [queued(endpoint_id, offset) for offset in range(len(bad), 60)]
        refused.update(str(each.delivery_id) for each in bad)
        async with delivering(local, topics):
            await publish(local, topics.deliveries, bad)
            await wait_until_async(lambda: len(came) >= len(bad), "its breaker opens")
            await publish(local, topics.deliveries, good)
            await wait_until_async(lambda: {str(each.delivery_id) for each in good} <= set(came), "all come")
    assert came[len(bad)] not in refused
