"""Searches of tenants for what an endpoint was not sent: made from a real log by a dispatcher, and ordered once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from database.connector import connect
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.dispatch import missing_finder
from deliveries.dispatch.missing_finder import MissingFinder
from deliveries.endpoint_store import open_endpoint_store
from deliveries.redrive import missing_deliveries
from deliveries.redrive.missing_deliveries import DeliveryTopicNames, MissingSearch
from deliveries.redrive.missing_searches import MissingSearches, SearchRequest, StoredSearch
from devstack import sql
from operations.services.dispatcher import running_dispatcher
from operations.services.worker import build_worker
from projections.checkpoints import checkpoints_of
from runtime.settings import Settings
from schemas.events import Event
from streams.errors import KafkaUnavailable
from tests.conftest import Database
from tests.support.command_line import operations
from tests.support.delivering import add_endpoint, delivering, delivery_topics
from tests.support.endpoint_api import EndpointApi
from tests.support.load import events, fill
from tests.support.receivers import receiver
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import wait_until_async

EVENTS = 30
DISPATCHED = "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = 'dispatcher'"
ORDERED = "SELECT string_agg(event_id::text, ' ') FROM redrive_slots"


def names_of(topic: str, topics: DeliveryTopics) -> DeliveryTopicNames:
    """Return the topics that a test's searches compare."""
    return DeliveryTopicNames(topic, topics.deliveries, topics.attempts)


@pytest_asyncio.fixture
async def topics(local: Settings) -> AsyncIterator[DeliveryTopics]:
    """Topics of a test's own."""
    async with delivery_topics(local, 4) as made:
        yield made


@contextlib.asynccontextmanager
async def dispatching(local: Settings, topic: str, topics: DeliveryTopics) -> AsyncIterator[None]:
    """Log and dispatch events as long as the block lasts."""
    async with (
        contextlib.AsyncExitStack() as stack,
        running_dispatcher(local, topic, topics.deliveries, attempts_topic=topics.attempts),
    ):
        worker = build_worker(local, [topic])
        stack.push_async_callback(worker.stop)
        await worker.start()
        yield


async def wait_dispatched(database: Database, count: int) -> None:
    """Return once a dispatcher has passed so many events."""

    async def passed() -> bool:
        return bool(await asyncio.to_thread(sql.value, database.superuser_url, DISPATCHED) == count)

    await wait_until_async(passed, f"{count} events are dispatched")


async def unsent(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, url: str = "http://127.0.0.1:1/"
) -> tuple[UUID, Sequence[Event]]:
    """Publish events while an endpoint is paused; return it, active, and the events that it was not sent."""
    endpoint_id = await add_endpoint(local, url)
    made = list(events(EVENTS, agents=10))
    async with open_endpoint_store(local) as store:
        await store.change_state(endpoint_id, "pause", "A test.")
        async with dispatching(local, topic, topics):
            await asyncio.to_thread(fill, local, topic, made)
            await wait_dispatched(database, EVENTS)
        await store.change_state(endpoint_id, "resume", "A test.")
    return endpoint_id, made


async def asked(local: Settings, endpoint_id: UUID, **changes: Any) -> int:
    """Store a search as the role of the API; return its number."""
    database = connect(local, "endpoints")
    try:
        searches = MissingSearches(database, "genesis")
        fields = {
            "operation_id": uuid4(), "endpoint_id": endpoint_id, "since": datetime.now(UTC) - timedelta(hours=1),
            "rate_per_second": 10_000, "execute": True, "reason": "A test.", "asked_by": "tests",
        }  # fmt: skip
        request = SearchRequest(**{**fields, **changes})
        assert await searches.store(request, 100)
        assert not await searches.store(request, 100)
        found = await searches.find_operation(request.operation_id)
        assert found is not None
        assert found.state == "waiting"
        return found.number
    finally:
        await database.close()


async def looked_up(local: Settings, number: int) -> StoredSearch:
    """Return a search as the role of the API sees it."""
    database = connect(local, "endpoints")
    try:
        return await MissingSearches(database, "genesis").find(number)
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def finders(
    local: Settings, topic: str, topics: DeliveryTopics, count: int = 1
) -> AsyncIterator[list[MissingFinder]]:
    """Yield what makes searches, without a process around it."""
    made = [MissingFinder(local, names_of(topic, topics)) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            await each.stop()


async def test_a_tenant_plans_and_orders_what_its_endpoint_was_not_sent(
    endpoint_api: EndpointApi, local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """Over HTTP: planned, ordered once by two requests at once, recorded, each delivered once, then none is left."""
    async with receiver() as there:
        endpoint_id, made = await unsent(local, database, topic, topics, f"http://127.0.0.1:{there.port}/")
        body = {"endpoint": str(endpoint_id), "from": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}

        async def ended(answer: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}

            async def is_ended() -> bool:
                found.update((await endpoint_api.send("GET", f"/searches/{answer.json()['number']}")).json())
                return bool(found["state"] != "waiting")

            await wait_until_async(is_ended, "the search is made")
            return found

        async with dispatching(local, topic, topics), delivering(local, topics):
            planned = await ended(await endpoint_api.send("POST", "/searches", body))
            assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 0
            ordering = body | {"execute": True, "rate_per_second": 1_000, "reason": "It was paused."}
            answers = await asyncio.gather(
                *(endpoint_api.send("POST", "/searches", ordering, idempotency_key="a") for _ in range(2))
            )
            ordered = await ended(answers[0])

            async def delivered() -> bool:
                found = (await endpoint_api.send("GET", f"/redrives/{ordered['redrive']}")).json()
                return bool(found["recorded"] == {"delivered": EVENTS})

            await wait_until_async(delivered, "what was missing is delivered")
            rest = await ended(await endpoint_api.send("POST", "/searches", body))
    assert (planned["state"], planned["compared"], planned["redrive"]) == ("ended", EVENTS, None)
    assert planned["plan"]["deliveries"] == EVENTS
    assert {each["state"] for each in planned["plan"]["groups"]} == {"missing"}
    assert set(planned["plan"]["examples"]) <= {str(each.event_id) for each in made}
    assert sorted(each.status_code for each in answers) == [200, 202]
    assert answers[0].json()["number"] == answers[1].json()["number"]
    assert rest["plan"]["deliveries"] == 0
    assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 1
    sent = Counter(headers["webhook-id"] for _, _, headers, _ in there.requests)
    assert (len(sent), set(sent.values())) == (EVENTS, {1})
    actions = [each for each in await operations(local, str(endpoint_id)) if each.action == "deliveries.replay_missing"]
    assert {(str(each.operation_id), each.actor) for each in actions} == {
        (ordered["operation_id"], ordered["asked_by"])
    }


async def test_two_processes_that_make_a_search_give_one_order(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """As where the one that held the lock was frozen: the order has each event once, and the search names it."""
    endpoint_id, made = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    async with finders(local, topic, topics, 2) as both:
        assert await asyncio.gather(*(each.make_next() for each in both)) == [True, True]
        found = await looked_up(local, number)
        again = await asked(local, endpoint_id)
        assert await both[0].make_next()
        assert not await both[0].make_next()
    assert sorted(sql.value(database.owner_url, ORDERED).split()) == sorted(str(each.event_id) for each in made)
    assert (found.state, found.redrive is not None) == ("ended", True)
    second = await looked_up(local, again)
    assert second.plan is not None
    assert (second.redrive, second.plan.plan().left_out) == (None, {"ordered": EVENTS})


async def test_what_another_order_took_meanwhile_is_left_to_it(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that is given between the look and the order: no delivery is in two."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    missing = MissingSearch.missing

    async def and_then_ordered(search: MissingSearch) -> AsyncIterator[Any]:
        found = [each async for each in missing(search)]
        for each in found:
            yield each
        async with open_redrives(local) as redrives, redrives.open_order(redrive_order(kind="replay_missing")) as new:
            await new.add_missing(endpoint_id, found[:10])

    monkeypatch.setattr(MissingSearch, "missing", and_then_ordered)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    redrive = (await looked_up(local, number)).redrive
    assert redrive is not None
    slots = (
        "SELECT string_agg(n::text, ' ' ORDER BY n) FROM (SELECT count(*) AS n FROM redrive_slots GROUP BY number) c"
    )
    assert sql.value(database.owner_url, slots) == f"10 {EVENTS - 10}"


@pytest.mark.parametrize(
    ("bound", "why"), [("OFFSETS_MAX", "30 offsets of the log"), ("DELIVERIES_MAX", "More than 5 events are missing")]
)
async def test_a_search_is_bounded(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch,
    bound: str, why: str,
) -> None:  # fmt: skip
    """One that would look at more, or found more, is refused with the reason, and orders nothing."""
    monkeypatch.setattr(missing_finder, bound, 5)
    endpoint_id, _ = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    found = await looked_up(local, number)
    assert (found.state, found.plan, found.redrive) == ("refused", None, None)
    assert why in str(found.why)
    assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 0


async def test_a_search_that_fails_holds_up_no_other(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused without its cause; while Kafka is away all wait; an endpoint that takes none is ordered nothing."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    unheard = await add_endpoint(local, "http://127.0.0.1:1/")
    numbers = [await asked(local, each) for each in (endpoint_id, unheard, endpoint_id)]
    prepare, failures = MissingSearch.prepare, [KafkaUnavailable(why="A test."), ValueError("secret")]

    async def failing(search: MissingSearch, *times: datetime) -> None:
        if failures:
            raise failures.pop(0)
        await prepare(search, *times)

    monkeypatch.setattr(MissingSearch, "prepare", failing)
    async with finders(local, topic, topics) as [finder]:
        with pytest.raises(KafkaUnavailable):
            await finder.make_next()
        assert (await looked_up(local, numbers[0])).state == "waiting"
        assert await finder.make_next()
        assert await finder.make_next()
        async with open_endpoint_store(local) as store:
            await store.change_state(endpoint_id, "pause", "A test.")
        assert await finder.make_next()
    failed, behind, inactive = [await looked_up(local, number) for number in numbers]
    assert (failed.state, behind.state, inactive.state) == ("refused", "refused", "ended")
    assert "secret" not in str(failed.why)
    assert "No dispatcher has heard of the endpoint" in str(behind.why)
    assert inactive.plan is not None
    assert (inactive.redrive, inactive.plan.plan().left_out) == (None, {"inactive": EVENTS})


async def test_old_plans_are_forgotten(local: Settings, database: Database, topic: str, topics: DeliveryTopics) -> None:
    """Those that were to order nothing, days after their end; the others stay, since they are operator actions."""
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:1/")
    for execute in (True, False, False):
        await asked(local, endpoint_id, execute=execute)
    async with finders(local, topic, topics) as [finder]:
        for _ in range(2):
            assert await finder.make_next()
        sql.execute(database.owner_url, ["UPDATE missing_searches SET ended_at = ended_at - interval '9 days'"])
        assert await finder.make_next()
    left = "SELECT string_agg(execute::text, ' ' ORDER BY number) FROM missing_searches"
    assert sql.value(database.owner_url, left) == "true false"


async def test_what_is_not_dispatched_yet_is_told(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """Nothing is missing of it, since a dispatcher sends it by itself; but it was not looked at either."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    await asyncio.to_thread(fill, local, topic, list(events(7, seed=5)))
    number = await asked(local, endpoint_id, execute=False)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    found = await looked_up(local, number)
    assert found.plan is not None
    assert (found.compared, found.plan.undispatched, found.plan.plan().deliveries) == (EVENTS, 7, EVENTS)


async def test_a_search_that_another_process_ended_orders_nothing(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one that was frozen goes on: its tenant was told that there is no order."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    missing = MissingSearch.missing

    async def and_then_refused(search: MissingSearch) -> AsyncIterator[Any]:
        async for each in missing(search):
            yield each
        writer = connect(local, "writer")
        assert await MissingSearches(writer).refuse(number, "Another process could not make it.")
        await writer.close()

    monkeypatch.setattr(MissingSearch, "missing", and_then_refused)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
        assert not await finder.make_next()
    found = await looked_up(local, number)
    assert (found.state, found.why, found.redrive) == ("refused", "Another process could not make it.", None)
    assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 0


async def test_a_search_that_is_given_up_ends_its_query_first(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session is no two threads' at once: it is closed behind the query that runs, and the search waits on."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    reading, given_up, closed = threading.Event(), threading.Event(), threading.Event()
    steps: list[str] = []
    logged_events, session_of = missing_deliveries.logged_events, missing_deliveries.Session

    def read(*arguments: Any) -> Any:
        reading.set()
        assert given_up.wait(60)
        try:
            return logged_events(*arguments)
        finally:
            steps.append("read")

    def dispatched_to(search: MissingSearch) -> dict[int, int]:
        with contextlib.closing(session_of(local.database_address("writer"))) as session:
            return checkpoints_of(session, "dispatcher", topic)

    class WatchedSession(session_of):  # type: ignore[valid-type, misc]  # the class as it is
        def close(self) -> None:
            steps.append("closed")
            super().close()
            closed.set()

    async with finders(local, topic, topics) as [finder]:
        with monkeypatch.context() as watched:
            watched.setattr(missing_deliveries, "logged_events", read)
            watched.setattr(MissingSearch, "_dispatched_to", dispatched_to)
            watched.setattr(missing_deliveries, "Session", WatchedSession)
            finder.start()
            assert await asyncio.to_thread(reading.wait, 60)
        stopping = asyncio.create_task(finder.stop())
        await asyncio.wait([stopping], timeout=1)
        given_up.set()
        await stopping
        assert await asyncio.to_thread(closed.wait, 60)
    assert steps == ["read", "closed"]
    assert (await looked_up(local, number)).state == "waiting"


FINDERS_LOCK = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND ((classid::bigint << 32) | objid::bigint) = hashtextextended('plant.missing_searches', 0)
"""


async def test_searches_go_on_where_the_lock_was_lost(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of one: both processes may make it then, there is one order, and later ones are made."""
    endpoint_id, made = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    missing, lost = MissingSearch.missing, asyncio.Event()

    async def and_lose_the_lock(search: MissingSearch) -> AsyncIterator[Any]:
        if not lost.is_set():
            lost.set()
            assert sql.value(database.superuser_url, FINDERS_LOCK)
        async for each in missing(search):
            yield each

    monkeypatch.setattr(MissingSearch, "missing", and_lose_the_lock)
    async with finders(local, topic, topics, 2) as both:
        for each in both:
            each.start()

        async def ended() -> bool:
            return (await looked_up(local, number)).state == "ended"

        await wait_until_async(ended, "the search is made")
        number = await asked(local, endpoint_id, execute=False)
        await wait_until_async(ended, "the next one is made")
    assert sorted(sql.value(database.owner_url, ORDERED).split()) == sorted(str(each.event_id) for each in made)
    assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 1
