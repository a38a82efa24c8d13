"""The API while its database is away, and once it is back; its end while readers wait; peers that read nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio

from database.connector import fetch_rows
from database.errors import StatementTimedOut
from devstack import sql
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.api_process import start, waits
from tests.support.batches import TOPIC
from tests.support.ingress_process import ended, received_until_closed
from tests.support.own_task import in_own_task
from tests.support.reading import Reading, onboarded, problem, reading_of
from tests.support.unresponsive_front import UnresponsiveFront, unresponsive_front
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

AWAY = {"database-unavailable", "starting", "query-timeout", "overloaded"}
"""What may be answered while the database is away: all are 503, and say when to ask again."""
END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = 'plant_api'
"""
WAITERS = 20
PIPELINED = 15
SMALL_BUFFER_BYTES = 4_096


@pytest_asyncio.fixture
async def front(database: Database) -> AsyncIterator[UnresponsiveFront]:
    """The way of the API to its database."""
    async with unresponsive_front(database.api_url) as made:
        yield made


@pytest_asyncio.fixture
async def reading(settings: Settings, front: UnresponsiveFront) -> AsyncIterator[Reading]:
    """The application behind the front, with short times."""
    quick = msgspec.structs.replace(settings, database_api_url=front.address, api_query_timeout_seconds=1)
    async with in_own_task(reading_of(quick)) as made:
        yield made


async def is_away(reading: Reading) -> bool:
    """Ask once; whether the database was away. Anything but rows or a problem of the database is a fault."""
    answer = await asyncio.wait_for(reading.get("/agents"), DEADLINE_SECONDS)
    if answer.status_code == 200:
        return False
    status, kind = problem(answer)
    assert (status, kind in AWAY, answer.headers["retry-after"]) == (503, True, "1")
    return True


async def begin_to_wait(reading: Reading, path: str) -> asyncio.Task[httpx.Response]:
    """Ask for a position that is not there yet; again where the query before the wait took longer than it may."""
    while True:
        waiting = asyncio.create_task(reading.get(path, prefer="wait=50"))

        def is_settled(waiting: asyncio.Task[httpx.Response] = waiting) -> bool:
            return waiting.done() or reading.api.reads.limits.waiters.count == 1

        await wait_until_async(is_settled, "the request waits")
        if not waiting.done():
            return waiting
        assert problem(waiting.result())[1] in AWAY


async def test_a_database_that_is_lost_is_a_problem_until_it_is_back(
    reading: Reading, front: UnresponsiveFront
) -> None:
    """It does not answer, and connections stay open, as of a lost machine: readers, and those who wait, get 503; then
    they are answered again, by the same process.
    """
    reading.project([onboarded(1)])
    path = f"/agents?at-least={TOPIC}/0/1"
    waiting = await begin_to_wait(reading, path)
    await eventually(reading, "/agents")

    front.stop_responding()
    assert await is_away(reading)
    answer = await asyncio.wait_for(waiting, DEADLINE_SECONDS)
    assert (problem(answer)[0], problem(answer)[1] in AWAY | {"not-caught-up"}) == (503, True)
    assert reading.api.reads.limits.waiters.count == reading.api.reads.limits.requests.count == 0
    assert problem(await reading.client.get("/readyz")) == (503, "starting")
    assert (await reading.client.get("/livez")).status_code == 200

    front.respond()
    await eventually(reading, "/agents")
    again = await begin_to_wait(reading, path)
    await asyncio.to_thread(reading.project, [onboarded(2)], start=1)
    if (answer := await again).status_code != 200:  # a second is short on a busy machine
        answer = await eventually(reading, path)
    assert len(answer.json()["items"]) == 2
    assert (await reading.client.get("/readyz")).status_code == 200


async def test_a_database_that_restarts_costs_nobody_an_answer_of_ours(reading: Reading, database: Database) -> None:
    """It ends all sessions, those of the pool too: who reads, or waits, gets rows or 503."""
    reading.project([onboarded(1)])
    for number in range(1, 4):
        path = f"/agents?at-least={TOPIC}/0/{number}"
        waiting = await begin_to_wait(reading, path)
        sql.execute(database.superuser_url, [END_SESSIONS])
        await is_away(reading)
        await asyncio.to_thread(reading.project, [onboarded(1 + number)], start=number)
        answer = await waiting
        if answer.status_code != 200:
            assert (problem(answer)[0], problem(answer)[1] in AWAY) == (503, True)
        assert len((await eventually(reading, path)).json()["items"]) == 1 + number


async def eventually(reading: Reading, path: str) -> httpx.Response:
    """The rows, once they are read: anything but those is a problem of the database."""
    answers: list[httpx.Response] = []

    async def read() -> bool:
        answers.append(answer := await reading.get(path))
        assert answer.status_code == 200 or problem(answer)[1] in AWAY | {"not-caught-up"}, answer.text
        return answer.status_code == 200

    await wait_until_async(read, "the rows are read")
    return answers[-1]


async def test_a_query_that_takes_too_long_is_ended_by_the_database(reading: Reading) -> None:
    """Not by its lock, but by its own time."""
    with pytest.raises(StatementTimedOut):
        async with reading.api.database.transaction("genesis", read_only=True) as connection:
            await fetch_rows(connection, f"SELECT pg_sleep({DEADLINE_SECONDS})::text AS slept")


async def test_who_waits_for_a_connection_waits_no_longer_than_a_query_may(
    settings: Settings, database: Database
) -> None:
    """Where all are in use the answer is 503, and rows as soon as one is free."""
    one = msgspec.structs.replace(settings, database_pool_size=1, api_query_timeout_seconds=1)
    async with reading_of(one) as reading:
        async with reading.api.database.transaction("genesis", read_only=True):
            assert await is_away(reading)
        assert (await eventually(reading, "/agents")).json() == {"items": [], "next": None}


async def test_it_ends_though_its_database_is_lost_and_readers_wait(
    settings: Settings, front: UnresponsiveFront, tmp_path: Path
) -> None:
    """SIGTERM: those who wait get a problem, and the exit code is 0."""
    running = await start(msgspec.structs.replace(settings, database_api_url=front.address), tmp_path)
    try:
        peers = [running.connect() for _ in range(WAITERS)]
        for peer in peers:
            peer.sendall(running.request(f"/agents?at-least={TOPIC}/0/99999", more="prefer: wait=50\r\n"))
        await wait_until_async(lambda: waits(running, WAITERS), "all wait")
        front.stop_responding()
        running.process.terminate()
        answers = [await asyncio.to_thread(received_until_closed, peer) for peer in peers]
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 503"}
        assert await asyncio.wait_for(running.process.wait(), DEADLINE_SECONDS) == 0
    finally:
        await ended(running.process)
        for peer in peers:
            peer.close()


async def test_a_peer_that_reads_nothing_holds_up_neither_others_nor_the_end(
    settings: Settings, tmp_path: Path
) -> None:
    """It asks for many large answers and reads none: others are answered, and SIGTERM ends the process."""
    running = await start(settings, tmp_path)
    try:
        with closing(socket.socket()) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            peer.connect(("127.0.0.1", running.port))
            peer.sendall(running.request("/openapi.json") * PIPELINED)
            async with httpx.AsyncClient(verify=False, timeout=DEADLINE_SECONDS) as client:
                for _ in range(3):
                    headers = {"authorization": f"Bearer {running.token}"}
                    assert (await client.get(f"{running.url}/agents", headers=headers)).status_code == 200
            running.process.terminate()
            assert await asyncio.wait_for(running.process.wait(), DEADLINE_SECONDS) == 0
    finally:
        await ended(running.process)
