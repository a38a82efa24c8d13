"""An endpoint that asked for time gets no attempts, whoever owns its partition."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from aiohttp import web

from database.connector import connect
from deliveries.attempts import Attempt
from deliveries.deliverer.attempt_records import EndedDelivery
from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.deliverer.throttle_rows import CLOCKS_APART_SECONDS, find_throttles, throttle_statements
from deliveries.delivery_progress import endpoint_progress
from deliveries.endpoints import EndpointId
from deliveries.outcomes import AttemptOutcome
from deliveries.schedule import RetryAt
from projections.session import Session
from runtime.settings import Settings
from tests.support.delivering import add_endpoint, attempts_of, delivering, publish, queued
from tests.support.made_deliveries import made_delivery
from tests.support.receivers import receiver
from tests.support.waiting import wait_until_async

HOUR = timedelta(hours=1)


@pytest.fixture
def session(local: Settings) -> Iterator[Session]:
    """A deliverer's session."""
    made = Session(local.database_address("deliverer"))
    yield made
    made.close()


def throttled(endpoint_id: EndpointId, until: datetime) -> EndedDelivery:
    """Return the end of an attempt whose answer asked for time until then."""
    outcome = AttemptOutcome(status_code=503, retry_after_seconds=600.0)
    return EndedDelivery(
        delivery=made_delivery(endpoint_id=endpoint_id.bytes), end=RetryAt(until, None, 2),
        began_at=until - timedelta(seconds=600), attempt=Attempt(outcome=outcome, duration_seconds=0.0),
    )  # fmt: skip


async def test_the_next_owner_keeps_to_what_an_endpoint_asked_for(local: Settings, topics: DeliveryTopics) -> None:
    """A new delivery waits as long as the one that was refused; an operator is told until when."""
    async with receiver() as there:
        there.answer = lambda: web.Response(status=429, headers={"Retry-After": "600"})  # type: ignore[assignment]
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")

        async def outcomes() -> list[str]:
            return [each.outcome for each in await attempts_of(local, topics)]

        async def are_two() -> bool:
            return len(await outcomes()) == 2

        async with delivering(local, topics):
            await publish(local, topics.deliveries, [queued(endpoint_id, 1)])
            await wait_until_async(lambda: there.requests, "it is asked")
        async with delivering(local, topics):
            await publish(local, topics.deliveries, [queued(endpoint_id, 2)])
            await wait_until_async(are_two, "the second is put off")
        assert await outcomes() == ["throttled", "postponed"]
        assert len(there.requests) == 1
    first, second = [each.next_attempt_at for each in await attempts_of(local, topics)]
    assert first is not None
    assert second is not None
    assert abs(second - first) < timedelta(seconds=1)
    operator = connect(local, "operator")
    try:
        until = (await endpoint_progress(operator, endpoint_id)).throttled_until
    finally:
        await operator.close()
    assert until is not None
    assert abs(until - first) < timedelta(seconds=1)


async def test_the_latest_time_counts(local: Settings, session: Session) -> None:
    """An owner reads those of its partition; a shorter one takes nothing away, and one that is over goes."""
    now = datetime.now(UTC).replace(microsecond=0)
    long, short, other = [await add_endpoint(local, f"http://127.0.0.1:{port}/") for port in (1, 2, 3)]
    for until in (now + HOUR, now + HOUR / 2):
        session.script(*throttle_statements(0, [throttled(long, until)]))
    session.script(*throttle_statements(0, [throttled(short, now - HOUR)]))
    session.script(*throttle_statements(1, [throttled(other, now + HOUR)]))
    assert find_throttles(session, 0) == {long.bytes: now + HOUR}
    kept = session.frame("SELECT uuid_send(endpoint_id) AS id FROM endpoint_throttles ORDER BY partition").iter_rows()
    assert [each for (each,) in kept] == [long.bytes, other.bytes]
    session.script(*throttle_statements(0, [throttled(other, now + HOUR / 2)]))
    assert find_throttles(session, 0) == {long.bytes: now + HOUR, other.bytes: now + HOUR}, "its partition is another"


async def test_a_time_that_no_endpoint_can_have_asked_for_is_cut(local: Settings, session: Session) -> None:
    """The clock of the deliverer that wrote it was ahead."""
    endpoint_id = await add_endpoint(local, "http://127.0.0.1:1/")
    session.script(*throttle_statements(0, [throttled(endpoint_id, datetime.now(UTC) + timedelta(days=400))]))
    until = find_throttles(session, 0)[endpoint_id.bytes]
    assert until < datetime.now(UTC) + HOUR + timedelta(seconds=CLOCKS_APART_SECONDS)


async def test_an_endpoint_that_is_not_there_costs_nothing(session: Session) -> None:
    """The rest of its round is written."""
    session.script(*throttle_statements(0, [throttled(EndpointId(uuid4()), datetime.now(UTC) + HOUR)]))
    assert find_throttles(session, 0) == {}
