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
from deliveries.delivery_id import delivery_id
from deliveries.dispatch import missing_finder
from deliveries.dispatch.missing_finder import MissingFinder
from deliveries.endpoint_store import open_endpoint_store
from deliveries.endpoints import EndpointStart, new_endpoint_id
from deliveries.redrive import missing_deliveries
from deliveries.redrive.missing_deliveries import DeliveryTopicNames, MissingDelivery, MissingSearch
from deliveries.redrive.missing_searches import MissingSearches, SearchRequest, StoredSearch
from deliveries.redrive.orders import NewOrder
from devstack import sql
from operations.services.dispatcher import running_dispatcher
from operations.services.worker import build_worker
from projections.checkpoints import checkpoints_of
from projections.session import Session
from runtime.settings import Settings
from schemas import codec
from schemas.events import Event
from streams.errors import KafkaUnavailable
from streams.producer import EventProducer
from tests.conftest import Database
from tests.support.command_line import operations
from tests.support.delivering import add_endpoint, delivering, delivery_topics
from tests.support.endpoint_api import EndpointApi
from tests.support.load import events, fill
from tests.support.made_attempts import attempted
from tests.support.receivers import receiver
from tests.support.recorded_attempts import record
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

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
    assert (planned["plan"]["deliveries"], planned["ordered"], ordered["ordered"]) == (EVENTS, None, EVENTS)
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
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the one that held the lock was frozen: the order has each event once, and the search names it."""
    endpoint_id, made = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    prepare, begun = MissingSearch.prepare, asyncio.Barrier(2)

    async def together(search: MissingSearch, *times: datetime) -> None:
        await begun.wait()
        await prepare(search, *times)

    async with finders(local, topic, topics, 2) as both:
        with monkeypatch.context() as patched:
            patched.setattr(MissingSearch, "prepare", together)
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
    """An order that is given between the look and the order: no delivery is in two, and the search counts its own."""
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
    found = await looked_up(local, number)
    assert found.redrive is not None
    assert found.plan is not None
    assert (found.plan.plan().deliveries, found.plan.ordered) == (EVENTS, EVENTS - 10)
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
        assert given_up.wait(DEADLINE_SECONDS)
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
            assert await asyncio.to_thread(reading.wait, DEADLINE_SECONDS)
        stopping = asyncio.create_task(finder.stop())
        await asyncio.wait([stopping], timeout=1)
        given_up.set()
        await stopping
        assert await asyncio.to_thread(closed.wait, DEADLINE_SECONDS)
    assert steps == ["read", "closed"]
    assert (await looked_up(local, number)).state == "waiting"


async def test_a_search_that_is_given_up_in_its_order_gives_none(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an order is none, and nobody waits for it: whoever makes the search again gives all of it, once."""
    endpoint_id, made = await unsent(local, database, topic, topics)
    number = await asked(local, endpoint_id)
    add_missing, added = NewOrder.add_missing, asyncio.Event()

    async def add_half(new: NewOrder, endpoint_id: UUID, missing: Sequence[MissingDelivery]) -> None:
        await add_missing(new, endpoint_id, missing[: EVENTS // 2])
        added.set()
        await asyncio.Event().wait()

    async with finders(local, topic, topics) as [finder]:
        with monkeypatch.context() as halved:
            halved.setattr(NewOrder, "add_missing", add_half)
            finder.start()
            await added.wait()
            await finder.stop()
    assert (await looked_up(local, number)).state == "waiting"
    assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 0
    async with finders(local, topic, topics) as [successor]:
        assert await successor.make_next()
    found = await looked_up(local, number)
    assert (found.state, found.redrive is not None) == ("ended", True)
    assert sorted(sql.value(database.owner_url, ORDERED).split()) == sorted(str(each.event_id) for each in made)


async def test_a_resume_that_no_dispatcher_has_heard_of_is_waited_for(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have passed events since, which it gives the endpoint by itself: ordered too, they would be sent twice."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    async with open_endpoint_store(local) as store:
        await store.change_state(endpoint_id, "pause", "A test.")
        await store.change_state(endpoint_id, "resume", "A test.", EndpointStart((0, 0, 0, 0)))
    first, second, third = [await asked(local, endpoint_id, execute=False) for _ in range(3)]
    heard = "UPDATE endpoint_backfills SET resumes = 1"
    async with finders(local, topic, topics) as [finder]:
        with monkeypatch.context() as impatient:
            impatient.setattr(missing_deliveries, "BEHIND_TIMEOUT_SECONDS", 0.0)
            sql.execute(database.superuser_url, [f"{heard} WHERE partition <> 2"])
            assert await finder.make_next()
        making = asyncio.create_task(finder.make_next())
        await asyncio.wait([making], timeout=1)
        sql.execute(database.superuser_url, [heard])
        assert await making
        async with open_endpoint_store(local) as store:
            await store.change_state(endpoint_id, "pause", "A test.")
            sql.execute(database.superuser_url, ["UPDATE endpoint_backfills SET resumes = 0"])
        assert await finder.make_next()
    refused, found, paused = [await looked_up(local, number) for number in (first, second, third)]
    assert refused.state == "refused"
    assert "has heard in partition 2 that the endpoint was resumed" in str(refused.why)
    assert found.plan is not None
    assert (found.state, found.plan.plan().deliveries) == ("ended", EVENTS)
    assert paused.plan is not None, "a resume that was taken back is never heard of"
    assert (paused.state, paused.plan.plan().left_out) == ("ended", {"inactive": EVENTS})


async def test_what_is_recorded_as_cancelled_is_missing_and_nothing_else_that_is(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """Dead ones are for another order, and those that wait keep their one chain of retries."""
    endpoint_id, made = await unsent(local, database, topic, topics)
    outcomes = (("cancelled", "cancelled"), ("failed", "dead"), ("failed", "waiting"), ("delivered", "delivered"))
    record(database, *(
        attempted(
            event_id=event.event_id, endpoint_id=endpoint_id, occurred_at=event.occurred_at, outcome=outcome,
            state=state, delivery_id=UUID(bytes=delivery_id(event.event_id.bytes, endpoint_id.bytes)),
        )
        for event, (outcome, state) in zip(made, outcomes, strict=False)
    ))  # fmt: skip
    number = await asked(local, endpoint_id)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    found = await looked_up(local, number)
    assert found.plan is not None
    states: Counter[str | None] = Counter()
    for group in found.plan.groups:
        states[group.state] += group.deliveries
    assert states == {"missing": EVENTS - 4, "cancelled": 1}
    ordered = sql.value(database.owner_url, ORDERED).split()
    assert sorted(ordered) == sorted(str(each.event_id) for each in (made[0], *made[4:]))


async def test_what_was_before_an_endpoints_start_is_not_missing(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """Nor what it is still to be given from the log; whatever time is asked for."""
    first, _ = await unsent(local, database, topic, topics)
    with contextlib.closing(Session(database.superuser_url)) as session:
        ends = [end for _, end in sorted(checkpoints_of(session, "dispatcher", topic).items())]
    async with open_endpoint_store(local) as store:
        late = new_endpoint_id()
        configuration = (await store.find(first)).configuration
        secrets = await store.secrets(first)
        start = EndpointStart(tuple(max(0, end - 2) for end in ends))
        await store.add(late, configuration, secrets, start, tenant="genesis")
    owed = min(2, ends[1])
    sql.execute(database.superuser_url, [
        f"INSERT INTO endpoint_backfills (endpoint_id, partition, next_offset, until_offset)"
        f" SELECT '{late}', partition, next_offset - CASE partition WHEN 1 THEN {owed} ELSE 0 END, next_offset"
        f" FROM checkpoints WHERE consumer = 'dispatcher' AND topic = '{topic}'"
    ])  # fmt: skip
    number = await asked(local, late, execute=False)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    found = await looked_up(local, number)
    assert found.compared == sum(min(2, end) for end in ends) - owed


async def test_what_an_endpoint_does_not_ask_for_is_not_missing(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """Events of other types are compared, and are nothing that it was to be sent."""
    _, made = await unsent(local, database, topic, topics)
    asked_for = made[0].event_type
    picky = await add_endpoint(local, "http://127.0.0.1:1/", event_types=(asked_for,))
    rows = f"INSERT INTO endpoint_backfills SELECT '{picky}', number, 0, 0 FROM generate_series(0, 3) AS number"
    sql.execute(database.superuser_url, [rows])
    number = await asked(local, picky, execute=False)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    found = await looked_up(local, number)
    assert found.plan is not None
    assert (found.compared, {each.type for each in found.plan.groups}) == (EVENTS, {asked_for})
    assert found.plan.plan().deliveries == sum(each.event_type == asked_for for each in made) < EVENTS


async def test_what_recorders_have_not_passed_is_not_told(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery may be delivered, and its record not be written down yet."""
    endpoint_id, made = await unsent(local, database, topic, topics)
    async with EventProducer(local, topics=(topics.attempts,)) as producer:
        value = codec.encode(attempted(endpoint_id=endpoint_id, event_id=made[0].event_id))
        sent = producer.submit_record(topics.attempts, str(endpoint_id).encode(), value, [])
        position = await producer.await_acknowledgement(sent)
    number = await asked(local, endpoint_id)
    monkeypatch.setattr(missing_deliveries, "BEHIND_TIMEOUT_SECONDS", 0.0)
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    found = await looked_up(local, number)
    assert found.state == "refused"
    assert f"A recorder has not passed offset 1 of {topics.attempts}/{position.partition}" in str(found.why)


async def test_searches_are_made_in_their_order(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """The oldest first, so that none waits for ever."""
    endpoint_id, _ = await unsent(local, database, topic, topics)
    numbers = [await asked(local, endpoint_id, execute=False) for _ in range(2)]
    async with finders(local, topic, topics) as [finder]:
        assert await finder.make_next()
    assert [(await looked_up(local, number)).state for number in numbers] == ["ended", "waiting"]


ORDERS = """
INSERT INTO redrives (operation_id, kind, selection, reason, ordered_by, rate_per_second, state, ended_at)
SELECT gen_random_uuid(), 'retry', '{}', '', '', 1, state, now() - make_interval(days => days)
FROM (VALUES ('finished', 9), ('stopped', 9), ('finished', 7), ('running', NULL)) AS made (state, days)
"""
SLOTS = """
INSERT INTO redrive_slots SELECT number, 0, 0, 0, 0, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), now()
FROM redrives
"""
SLOTS_LEFT = "SELECT string_agg(number::text, ' ' ORDER BY number) FROM redrive_slots"


async def test_slots_of_old_orders_are_forgotten(
    local: Settings, database: Database, topic: str, topics: DeliveryTopics
) -> None:
    """By a dispatcher, days after their end: there may be millions, and nobody who gives an order waits for that."""
    sql.execute(database.superuser_url, [ORDERS, SLOTS])
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:1/")
    some = MissingDelivery(0, 0, 0, uuid4(), uuid4(), datetime.now(UTC), "genesis.agent.rated", None, ordered=False)
    async with open_redrives(local) as redrives, redrives.open_order(redrive_order(kind="replay_missing")) as new:
        await new.add_missing(endpoint_id, [some])
    assert sql.value(database.owner_url, SLOTS_LEFT) == "1 2 3 4 5"
    async with finders(local, topic, topics) as [finder]:
        finder.start()
        await wait_until_async(
            lambda: sql.value(database.owner_url, SLOTS_LEFT) == "3 4 5", "slots of old orders are deleted"
        )
    assert sql.value(database.owner_url, "SELECT count(*) FROM redrives") == 5


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
