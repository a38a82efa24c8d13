"""kill -9 of a dispatcher while it searches the log for what endpoints were not sent: each is ordered and sent once."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from database.connector import connect
from deliveries.endpoint_starts import read_start
from deliveries.endpoint_store import open_endpoint_store
from deliveries.redrive.missing_deliveries import SLICE_EVENTS
from deliveries.redrive.missing_searches import MissingSearches, SearchRequest
from devstack.stack import Stack
from tests.support.delivering import add_endpoint, change_state
from tests.support.faults.scene import Scene, private_scene
from tests.support.faults.subscribers import subscribers
from tests.support.load import events, fill
from tests.support.waiting import wait_until

SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
EVENTS = 1_000
ENDPOINTS = 2
TOPIC_PARTITIONS = 4
PASSED = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM checkpoints WHERE consumer = 'dispatcher'"
HEARD = "SELECT count(*) AS n FROM endpoint_backfills"
POINTS = {
    "log_records": ("ACCESS EXCLUSIVE", f"LIMIT {SLICE_EVENTS}"),
    "webhook_deliveries": ("ACCESS EXCLUSIVE", "redrive_pending"),
    "redrive_slots": ("SHARE", "INSERT INTO redrive_slots"),
}
"""The tables that a search waits for where it is killed, each with the lock that it waits for, and a part of its
statement: as it reads the log, as it asks what of that is missing, and in the transaction of its order."""
HELD_UP = """
SELECT count(*) AS n FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND position($1 IN query) > 0
"""
WAITING = "SELECT count(*) AS n FROM missing_searches WHERE state = 'waiting'"
SLOTS = """
SELECT endpoint_id::text AS endpoint, count(*) AS n, count(DISTINCT event_id) AS events FROM redrive_slots GROUP BY 1
"""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("search-kills")) as made:
        yield made


def number_of(scene: Scene, query: str, *parameters: object) -> int:
    """Return the number that a query returns."""
    ((number,),) = scene.query(query, parameters)
    assert isinstance(number, int)
    return number


async def _resume(scene: Scene, endpoint_ids: Sequence[UUID]) -> None:
    """Resume endpoints, from now on."""
    start = await read_start(scene.settings, None, scene.topic)
    async with open_endpoint_store(scene.settings) as store:
        for endpoint_id in endpoint_ids:
            await store.change_state(endpoint_id, "resume", "A test.", start)


async def _ask(scene: Scene, endpoint_ids: Sequence[UUID]) -> None:
    """Ask for what endpoints were not sent, as the role of the API does."""
    database = connect(scene.settings, "endpoints")
    try:
        for endpoint_id in endpoint_ids:
            request = SearchRequest(
                operation_id=uuid4(), endpoint_id=endpoint_id, since=datetime.now(UTC) - timedelta(hours=6),
                rate_per_second=1_000, execute=True, reason="A test.", asked_by="tests",
            )  # fmt: skip
            assert await MissingSearches(database, "genesis").store(request, 100)
    finally:
        await database.close()


def test_what_is_missing_is_sent_once_whatever_search_is_killed(scene: Scene) -> None:
    """A search that was under way is made again by the next dispatcher; one order each, and each event once."""
    chance = random.Random(SEED)
    with subscribers(SEED) as there:
        url = f"http://127.0.0.1:{there.port}/good"
        endpoint_ids = [asyncio.run(add_endpoint(scene.settings, url)) for _ in range(ENDPOINTS)]
        for endpoint_id in endpoint_ids:
            asyncio.run(change_state(scene.settings, endpoint_id, "pause"))
        scene.worker()
        # A deliverer that loses its session attempts again what was under way, and each event is counted here.
        scene.deliverer(PLANT_WORKER_SESSION_TIMEOUT_SECONDS="300")
        dispatcher = scene.dispatcher()
        wait_until(lambda: number_of(scene, HEARD) == ENDPOINTS * TOPIC_PARTITIONS, "all partitions know the endpoints")
        fill(scene.settings, scene.topic, events(EVENTS, agents=60))
        wait_until(lambda: number_of(scene, PASSED) == EVENTS, "a dispatcher has passed what it sent to nobody")
        asyncio.run(_resume(scene, endpoint_ids))
        points = [each for _ in range(ROUNDS) for each in chance.sample(sorted(POINTS), len(POINTS))]
        for number, table in enumerate(points):
            lock, statement = POINTS[table]
            with scene.locked(table, lock):
                if number == 0:
                    asyncio.run(_ask(scene, endpoint_ids))
                else:
                    dispatcher = scene.dispatcher()
                wait_until(lambda part=statement: number_of(scene, HELD_UP, part), f"a search waits for {table}")
                dispatcher.kill()
        assert number_of(scene, WAITING) == ENDPOINTS
        scene.dispatcher()
        wanted = ENDPOINTS * EVENTS
        wait_until(
            lambda: there.accepted.total() >= wanted, lambda: f"{there.accepted.total()} of {wanted} are accepted"
        )
        wait_until(lambda: number_of(scene, WAITING) == 0, "no search is left")
        assert number_of(scene, "SELECT count(*) AS n FROM redrives") == ENDPOINTS
        states = scene.query("SELECT state, count(*) AS n FROM missing_searches WHERE redrive IS NOT NULL GROUP BY 1")
    slots = {UUID(str(endpoint)): (count, events) for endpoint, count, events in scene.query(SLOTS)}
    print(f"seed {SEED}: killed at {points}; {ENDPOINTS} searches, {there.accepted.total()} accepted")
    assert states == [("ended", ENDPOINTS)]
    assert slots == dict.fromkeys(endpoint_ids, (EVENTS, EVENTS))
    assert Counter(there.accepted.values()) == {1: wanted}
