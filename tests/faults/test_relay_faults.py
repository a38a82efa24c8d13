"""The relay killed, frozen, and cut off from Kafka and Postgres, while entities are being changed.

`PLANT_FAULT_ROUNDS` (1) says how many times over, `PLANT_FAULT_SEED` where; the seed is printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import threading
from collections.abc import Iterator

import pytest
from change_load import ChangeLoad
from direct_changes import backlog
from evidence import assert_exactly_once, dispositions, wait_until_level
from scene import Process, Scene, private_scene, until

from devstack import processes
from devstack.stack import Stack
from streams.errors import DatabaseAway
from streams.relay_session import SILENT_SECONDS

ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
KILLS_A_ROUND = 6
BACKLOG_ROWS = 2_000
AFTER_SECONDS = (0.0, 1.0)
TAKES_OVER_SECONDS = 5.0
"""A process of Python under load with another on two cores; the relay itself asks every half second."""
KAFKA_SILENT_SECONDS = 7.0
"""Longer than a publish waits for an answer, and shorter than the client's patience with its connection."""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("relay")) as made:
        made.worker()
        yield made


@pytest.fixture
def relays(scene: Scene) -> Iterator[list[Process]]:
    """An active relay and one that stands by; whatever takes their places is stopped too."""
    running = [scene.relay()]
    until(lambda: running[0].said("relay.active"), "the first is active")
    running.append(scene.relay())
    until(lambda: running[1].said("relay.standing_by"), "the second stands by")
    yield running
    codes = [relay.stop() for relay in running if relay.alive]
    assert codes == [0] * len(codes)


def load_of(scene: Scene, seed: int) -> ChangeLoad:
    return ChangeLoad(scene.settings.database_address("writer"), seed=seed)


def sent_rows(scene: Scene) -> int:
    """How many rows are marked, or -1 while the database is away."""
    return _count(scene, "sent_at IS NOT NULL")


def unsent_rows(scene: Scene) -> int:
    return _count(scene, "sent_at IS NULL")


def _count(scene: Scene, condition: str) -> int:
    try:
        return int(str(scene.query(f"SELECT count(*) AS n FROM outbox WHERE {condition}")[0][0]))
    except DatabaseAway:
        return -1


def goes_on(scene: Scene, seconds: float = 60.0) -> float:
    """Wait until rows that come after now are marked; the seconds it took."""
    rows = sent_rows(scene)
    return until(lambda: sent_rows(scene) > max(rows, 0), "rows are published", seconds)


def assert_all_published(scene: Scene) -> None:
    """Each row's event is applied exactly once, each entity's in the order of its versions, and nothing else is."""
    until(lambda: unsent_rows(scene) == 0, lambda: f"every row is marked, {unsent_rows(scene)} are not")
    wait_until_level(scene)
    rows = [str(row[0]) for row in scene.query("SELECT event_id::text AS id FROM outbox")]
    found = assert_exactly_once(scene, rows)
    assert set(found) <= {"applied", "repeat"}
    assert found["applied"] == len(rows)
    out_of_order = scene.query("""
        SELECT entity_id::text AS id, version FROM (
            SELECT o.entity_id, o.version, e.partition, e."offset",
                   lag(o.version) OVER w AS version_before, first_value(e.partition) OVER w AS first_partition
            FROM outbox AS o JOIN event_stream AS e ON e.event_id = o.event_id AND e.disposition = 'applied'
            WINDOW w AS (PARTITION BY o.entity_id ORDER BY e.partition, e."offset")
        ) AS placed WHERE version <= version_before OR partition <> first_partition
    """)
    assert out_of_order == []
    print(f"seed {SEED}: {len(rows)} changes; log: {dict(found)}")


def test_kill_9_of_relays_under_load_loses_nothing(scene: Scene, relays: list[Process]) -> None:
    """The active relay is killed at random moments; the other takes over, and a new one stands by."""
    chance, superuser_url = random.Random(SEED), scene.environ["PLANT_DATABASE_SUPERUSER_URL"]
    took = list[float]()
    with load_of(scene, SEED).running():
        for _ in range(ROUNDS * KILLS_A_ROUND):
            goes_on(scene)
            threading.Event().wait(chance.uniform(*AFTER_SECONDS))
            asyncio.run(backlog(superuser_url, BACKLOG_ROWS, versions=10, name=f"kill {len(took)}"))
            until(lambda: 0 < unsent_rows(scene) < BACKLOG_ROWS, "a backlog is being published")
            relays.pop(0).kill()
            took.append(until(lambda: relays[0].said("relay.active"), "the other takes over", TAKES_OVER_SECONDS))
            relays.append(scene.relay())
            until(lambda: relays[1].said("relay.standing_by"), "a new one stands by")

    assert_all_published(scene)
    print(f"{len(took)} kills; the other was active {min(took):.2f} to {max(took):.2f} s later")


def test_a_relay_that_was_frozen_does_no_harm(scene: Scene, relays: list[Process]) -> None:
    """Its session is ended by the one that stands by; when it goes on, it finds that out and stands by itself."""
    with load_of(scene, SEED + 1).running():
        for _ in range(ROUNDS):
            goes_on(scene)
            frozen, other = relays
            active_before = len(other.said("relay.active"))
            frozen.freeze()
            took = until(
                lambda: len(other.said("relay.active")) > active_before,  # noqa: B023
                "the other takes over",
                SILENT_SECONDS + TAKES_OVER_SECONDS,
            )
            goes_on(scene)
            stood_by = len(frozen.said("relay.standing_by"))
            frozen.thaw()
            until(
                lambda: len(frozen.said("relay.standing_by")) > stood_by,  # noqa: B023
                lambda: f"the frozen one stands by: {frozen.log.read_text()[-2000:]}",  # noqa: B023
            )
            goes_on(scene)
            relays.reverse()
            print(f"taken over {took:.2f} s after the freeze")

    assert_all_published(scene)
    assert all(relay.alive for relay in relays)


def test_a_silent_kafka_gets_no_event_twice(scene: Scene, private_stack: Stack, relays: list[Process]) -> None:
    """Publishes time out while the broker is stopped; what is under way is waited for, and not sent again."""
    with load_of(scene, SEED + 2).running():
        goes_on(scene)
        repeats = dispositions(scene)["repeat"]
        broker = private_stack.state.kafka
        processes.send(broker, signal.SIGSTOP)
        try:
            threading.Event().wait(KAFKA_SILENT_SECONDS)
        finally:
            processes.send(broker, signal.SIGCONT)
        until(lambda: [line for line in relays[0].said("outbox.relayed") if line["why"]], "a round says so")
        goes_on(scene)

    assert_all_published(scene)
    assert dispositions(scene)["repeat"] == repeats


def test_kafka_and_postgres_may_be_killed(scene: Scene, private_stack: Stack, relays: list[Process]) -> None:
    """The processes live on, and publish what was changed once both are there again."""
    chance = random.Random(SEED)
    parts = ["kafka", "postgres"] * ROUNDS
    chance.shuffle(parts)
    with load_of(scene, SEED + 3).running():
        for part in parts:
            goes_on(scene)
            if part == "kafka":
                private_stack.kill_kafka()
                until(lambda: [line for line in relays[0].said("outbox.relayed") if line["why"]], "it is noticed")
                private_stack.start_kafka()
            else:
                private_stack.kill_postgres()
                private_stack.start_postgres()
            print(f"killed {part}: goes on {goes_on(scene):.2f} s after its start")

    assert_all_published(scene)
    assert all(relay.alive for relay in relays)
