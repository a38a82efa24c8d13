"""The endpoints that a dispatcher knows of: it hears of each change, and keeps what it knows while it hears nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import pytest_asyncio

from deliveries.dispatch.endpoint_backfills import Resume
from deliveries.dispatch.endpoint_directory import POLL_SECONDS, EndpointDirectory
from deliveries.endpoints import EndpointStart
from projections.session import Session
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.dispatching import add_endpoint, change_endpoint
from tests.support.waiting import wait_until_async

FOREVER = 3_600.0
TERMINATE = """
SELECT count(pg_terminate_backend(pid, 5000)) AS ended FROM pg_stat_activity
WHERE application_name = 'plant dispatcher' AND datname = current_database()
"""


@pytest.fixture
def superuser(database: Database) -> Iterator[Session]:
    with closing(Session(database.superuser_url)) as session:
        yield session


@pytest_asyncio.fixture
async def listener(settings: Settings) -> AsyncIterator[EndpointDirectory]:
    """One that looks by itself when it connects alone."""
    made = EndpointDirectory(settings, poll_seconds=FOREVER)
    await made.start()
    yield made
    await made.stop()


def active(directory: EndpointDirectory) -> list[int]:
    return sorted(each.int for each in directory.known.active)


async def test_what_is_stored_before_the_start_is_known_at_once(settings: Settings) -> None:
    """Paused ones too, which the index leaves out."""
    await add_endpoint(settings, 1, event_types=["genesis.agent.rated"])
    await change_endpoint(settings, await add_endpoint(settings, 2), "pause")
    directory = EndpointDirectory(settings)
    await directory.start()
    await directory.stop()
    assert {each.int for each in directory.known.subscriptions} == {1, 2}
    assert active(directory) == [1]
    assert [each.int for each in directory.known.index.match("genesis.agent.rated", {})] == [1]


async def test_postgres_tells_of_each_change(settings: Settings, listener: EndpointDirectory) -> None:
    """New endpoints, and each change of state; what was known before stays as it was for who looks at it."""
    endpoint_id = await add_endpoint(settings, 1)
    await wait_until_async(lambda: active(listener) == [1], "it is known")
    known = listener.known
    await change_endpoint(settings, endpoint_id, "pause")
    await wait_until_async(lambda: active(listener) == [], "it is known to be paused")
    assert list(listener.known.subscriptions) == [endpoint_id]
    assert known.active == {endpoint_id}
    await change_endpoint(settings, endpoint_id, "resume")
    await wait_until_async(lambda: active(listener) == [1], "it is known to be resumed")
    await change_endpoint(settings, endpoint_id, "remove")
    await wait_until_async(lambda: not listener.known.subscriptions, "it is known to be removed")


async def test_it_looks_by_itself_too(settings: Settings, superuser: Session) -> None:
    """Where no hint comes, as through a pooler."""
    superuser.script("ALTER TABLE endpoints DISABLE TRIGGER notify_dispatchers")
    directory = EndpointDirectory(settings, poll_seconds=0.02)
    await directory.start()
    try:
        endpoint_id = await add_endpoint(settings, 1)
        await wait_until_async(lambda: active(directory) == [1], "it is known")
        await change_endpoint(settings, endpoint_id, "disable")
        await wait_until_async(lambda: active(directory) == [], "it is known to be disabled")
    finally:
        await directory.stop()


def test_it_looks_every_two_seconds_at_least() -> None:
    """As docs/how-to/endpoints.md promises, whoever makes it and names no time of its own."""
    assert POLL_SECONDS <= 2
    assert EndpointDirectory(Settings(database_url="postgresql://h/d"))._poll_seconds == POLL_SECONDS


async def test_a_session_that_was_ended_is_begun_again(
    settings: Settings, listener: EndpointDirectory, superuser: Session
) -> None:
    """It keeps what it knows, and looks at once when it is connected again."""
    await add_endpoint(settings, 1)
    await wait_until_async(lambda: active(listener) == [1], "it is known")
    ((ended,),) = superuser.query(TERMINATE)
    assert ended == 1
    assert active(listener) == [1]
    await add_endpoint(settings, 2)
    await wait_until_async(lambda: active(listener) == [1, 2], "both are known")


async def test_what_makes_no_difference_makes_no_index(
    settings: Settings, listener: EndpointDirectory, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber changes its URL as often as it likes: what events go to whom is the same, and is kept."""
    endpoint_id = await add_endpoint(settings, 1)
    await change_endpoint(settings, await add_endpoint(settings, 2), "pause")
    await wait_until_async(
        lambda: active(listener) == [1] and len(listener.known.subscriptions) == 2, "both are known, and their states"
    )
    loads, load, known = 0, EndpointDirectory._load, listener.known

    async def counted(directory: EndpointDirectory, connection: object) -> None:
        nonlocal loads
        await load(directory, connection)
        loads += 1

    monkeypatch.setattr(EndpointDirectory, "_load", counted)
    for number in (1, 2):
        url = f"UPDATE endpoints SET url = 'https://example.com/{number}', configured_at = clock_timestamp()"
        superuser.script(f"{url} WHERE id = '{endpoint_id}'")
        await wait_until_async(lambda number=number: loads >= number, "it has looked")  # type: ignore[misc]
    assert listener.known is known
    await change_endpoint(settings, endpoint_id, "pause")
    await wait_until_async(lambda: active(listener) == [], "a state makes one")
    await change_endpoint(settings, endpoint_id, "resume", EndpointStart((7,)))
    await wait_until_async(lambda: active(listener) == [1], "it is resumed")
    await change_endpoint(settings, endpoint_id, "pause")
    await change_endpoint(settings, endpoint_id, "resume", EndpointStart((9,)))
    await wait_until_async(
        lambda: listener.known.resumed.get(endpoint_id) == Resume(2, (9,)), "a resume alone makes one too"
    )
    await change_endpoint(settings, endpoint_id, "pause")
    await wait_until_async(lambda: active(listener) == [], "it is paused")
    assert not listener.known.resumed, "what is published while it is paused is not what it is owed"
