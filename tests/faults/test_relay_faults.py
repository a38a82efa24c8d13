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

from database.errors import DatabaseUnreachable
from devstack import processes
from devstack.stack import Stack
from relay.session import UNRESPONSIVE_TIMEOUT_SECONDS
from tests.support.direct_changes import backlog
from tests.support.faults.change_load import ChangeLoad
from tests.support.faults.evidence import assert_exactly_once, dispositions, wait_until_caught_up
from tests.support.faults.promises import hold_promise
from tests.support.faults.scene import Process, Scene, private_scene
from tests.support.waiting import wait_until

ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
KILLS_A_ROUND = 2
BACKLOG_ROWS = 2_000
AFTER_SECONDS = (0.0, 0.5)
TAKES_OVER_SECONDS = 15.0
"""Less than it takes to end an unresponsive holder of the lock; the relay itself asks every half second."""
UNDER_WAY_ROWS = 60
"""Several transactions of the load, of which the first wakes the relay."""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("relay")) as made:
        made.worker()
        yield made
        alive = [process for process in made.processes if process.alive]
        assert [process.stop() for process in alive] == [0] * len(alive)


@pytest.fixture
def relays(scene: Scene) -> list[Process]:
    """An active relay and one that stands by, in this order. Those that live go on from test to test."""
    running = [process for process in scene.processes if process.name.startswith("relay-") and process.alive]
    running += [scene.relay() for _ in range(2 - len(running))]
    wait_until(lambda: sorted(map(state_of, running)) == ["relay.active", "relay.standing_by"], "one of two is active")
    return sorted(running, key=state_of)


def state_of(relay: Process) -> str:
    """Return the last event that a relay logged about its own state."""
    lines = [
        line
        for event in ("relay.active", "relay.standing_by", "relay.database_unreachable")
        for line in relay.logged(event)
    ]
    return str(max(lines, key=lambda line: str(line["time"]))["event"]) if lines else ""


def load_of(scene: Scene, seed: int) -> ChangeLoad:
    return ChangeLoad(scene.settings.database_address("writer"), seed=seed)


def sent_rows(scene: Scene) -> int:
    """Return how many rows are marked, or -1 while the database is away."""
    return _count(scene, "sent_at IS NOT NULL")


def unsent_rows(scene: Scene) -> int:
    return _count(scene, "sent_at IS NULL")


def _count(scene: Scene, condition: str) -> int:
    try:
        return int(str(scene.query(f"SELECT count(*) AS n FROM outbox WHERE {condition}")[0][0]))
    except DatabaseUnreachable:
        return -1


def goes_on(scene: Scene) -> float:
    """Wait until more rows are marked than now; the seconds it took."""
    rows = sent_rows(scene)
    return wait_until(lambda: sent_rows(scene) > max(rows, 0), "rows are published")


def failed_cycles(relays: list[Process]) -> int:
    """Return how many rounds have ended with a failure; whichever relay is active."""
    return sum(bool(line["why"]) for relay in relays for line in relay.logged("outbox.relayed"))


def assert_all_published(scene: Scene) -> None:
    """Each row's event is applied exactly once, each entity's in the order of its versions, and nothing else is."""
    wait_until(lambda: unsent_rows(scene) == 0, lambda: f"{unsent_rows(scene)} rows are marked too")
    wait_until_caught_up(scene)
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
            wait_until(lambda: relays[1].logged("relay.standing_by"), "another stands by")
            threading.Event().wait(chance.uniform(*AFTER_SECONDS))
            asyncio.run(backlog(superuser_url, BACKLOG_ROWS, versions=10, name=f"kill {len(took)}"))
            wait_until(lambda: 0 < unsent_rows(scene) < BACKLOG_ROWS, "a backlog is being published")
            relays.pop(0).kill()
            took.append(wait_until(lambda: relays[0].logged("relay.active"), "the other takes over"))
            relays.append(scene.relay())
        # The end of the scene asks each to stop, which one that has only just begun can't do in order.
        wait_until(lambda: relays[1].logged("relay.standing_by"), "another stands by")

    assert_all_published(scene)
    hold_promise(f"the slowest takeover of {len(took)}", max(took), TAKES_OVER_SECONDS)


def test_a_relay_that_was_frozen_does_no_harm(scene: Scene, relays: list[Process]) -> None:
    """Its session is ended by the one that stands by; when it goes on, it finds that out and stands by itself."""
    with load_of(scene, SEED + 1).running():
        for _ in range(ROUNDS):
            goes_on(scene)
            frozen, other = relays
            active_before = len(other.logged("relay.active"))
            frozen.freeze()
            took = wait_until(
                lambda: len(other.logged("relay.active")) > active_before,  # noqa: B023
                "the other takes over",
            )
            goes_on(scene)
            stood_by = len(frozen.logged("relay.standing_by"))
            frozen.thaw()
            wait_until(
                lambda: len(frozen.logged("relay.standing_by")) > stood_by,  # noqa: B023
                lambda: f"the frozen one stands by: {frozen.log.read_text()[-2000:]}",  # noqa: B023
            )
            goes_on(scene)
            relays.reverse()
            hold_promise("taken over after the freeze", took, UNRESPONSIVE_TIMEOUT_SECONDS + TAKES_OVER_SECONDS)

    assert_all_published(scene)
    assert all(relay.alive for relay in relays)


def test_a_silent_kafka_gets_no_event_twice(scene: Scene, private_stack: Stack, relays: list[Process]) -> None:
    """Publishes time out while the broker is stopped; what is under way is waited for, and not sent again.

    Many more rows come meanwhile, so the answers come in rounds that have other rows.
    """
    superuser_url = scene.environ["PLANT_DATABASE_SUPERUSER_URL"]
    for number in range(ROUNDS):
        with load_of(scene, SEED + 10 + number).running():
            goes_on(scene)
            repeats, failed = dispositions(scene)["repeat"], failed_cycles(relays)
            broker = private_stack.state.kafka
            processes.send(broker, signal.SIGSTOP)
            try:
                wait_until(lambda: unsent_rows(scene) > UNDER_WAY_ROWS, "a cycle is under way")
                asyncio.run(backlog(superuser_url, BACKLOG_ROWS, name=f"silence {number}"))
                wait_until(lambda: failed_cycles(relays) > failed, "a cycle logs it")  # noqa: B023
            finally:
                processes.send(broker, signal.SIGCONT)
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
                failed = failed_cycles(relays)
                private_stack.kill_kafka()
                wait_until(lambda: failed_cycles(relays) > failed, "it is noticed")  # noqa: B023
                private_stack.start_kafka()
            else:
                private_stack.kill_postgres()
                private_stack.start_postgres()
            print(f"killed {part}: goes on {goes_on(scene):.2f} s after its start")

    assert_all_published(scene)
    assert all(relay.alive for relay in relays)
