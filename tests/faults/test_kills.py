"""kill -9 of every process at random points under load, on a Kafka and a Postgres of this module's own.

`PLANT_FAULT_ROUNDS` (1) says how many times each process is killed, `PLANT_FAULT_SEED` where and in what order; both
are printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
from collections.abc import Iterator

import pytest

from devstack.stack import Stack
from tests.support.faults.evidence import (
    applied,
    assert_exactly_once,
    is_applied,
    wait_until_caught_up,
    wait_until_full_ranges_are_closed,
)
from tests.support.faults.scene import Process, Scene, private_scene
from tests.support.faults.webhook_load import WebhookLoad
from tests.support.waiting import wait_until
from tests.support.webhooks import add_key

ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
AFTER_SECONDS = (0.2, 2.5)
"""A kill comes this long after the system has recovered from the one before."""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("kills")) as made:
        yield made


class System:
    """One worker, one ingress, a broker and a database, each of which can be killed and started again."""

    def __init__(self, scene: Scene, stack: Stack) -> None:
        self.scene = scene
        self.stack = stack
        self.worker: Process = scene.worker()
        self.ingress, self.port = scene.ingress()

    def kill(self, part: str) -> None:
        """Send SIGKILL, and start it again at once."""
        match part:
            case "worker":
                self.worker.kill()
                self.worker = self.scene.worker()
            case "ingress":
                self.ingress.kill()
                self.ingress, _ = self.scene.ingress(self.port)
            case "kafka":
                self.stack.kill_kafka()
                self.stack.start_kafka()
            case "postgres":
                self.stack.kill_postgres()
                self.stack.start_postgres()

    def recovered(self, load: WebhookLoad) -> float:
        """Wait until an event that was sent after now is applied; the seconds it took."""
        known = set(load.accepted)

        def fresh_is_applied() -> bool:
            fresh = [event_id for event_id in list(load.accepted) if event_id not in known]
            return bool(fresh) and is_applied(self.scene, fresh[0])

        return wait_until(fresh_is_applied, "an event that came after the kill is applied")


def test_kill_9_of_each_process_under_load_loses_and_repeats_nothing(scene: Scene, private_stack: Stack) -> None:
    """Every event that got its 200 is applied exactly once, chains verify, the read model equals a fold from zero."""
    chance = random.Random(SEED)
    _, sender = asyncio.run(add_key(scene.settings))
    system = System(scene, private_stack)
    load = WebhookLoad(sender, system.port, seed=SEED)
    kills = ["worker", "ingress", "kafka", "postgres"] * ROUNDS
    chance.shuffle(kills)
    with load.running():
        wait_until(lambda: applied(scene) > 0, "the first event is applied")
        for part in kills:
            pause = chance.uniform(*AFTER_SECONDS)
            threading.Event().wait(pause)
            system.kill(part)
            print(f"seed {SEED}: killed {part} after {pause:.2f} s; took up again {system.recovered(load):.2f} s later")
    wait_until_caught_up(scene)
    assert wait_until_full_ranges_are_closed(scene) > 0

    found = assert_exactly_once(scene, load.accepted)
    assert found["poison"] == 0
    assert found["applied"] >= load.accepted_count
    print(f"{load.accepted_count} accepted, {dict(load.answers)}; log: {dict(found)}")
