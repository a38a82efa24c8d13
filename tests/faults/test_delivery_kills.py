"""kill -9 of dispatcher, deliverer, broker and database, and a frozen deliverer, while events are being delivered.

`PLANT_FAULT_ROUNDS` (1) says how many times each is killed, `PLANT_FAULT_SEED` where and in what order; both are
printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from deliveries.deliverer.delivery_process import DelivererLimits
from devstack.stack import Stack
from tests.support.delivering import add_endpoint
from tests.support.faults.evidence import wait_until_caught_up
from tests.support.faults.scene import Process, Scene, private_scene
from tests.support.faults.subscribers import Subscribers, subscribers
from tests.support.faults.webhook_load import WebhookLoad
from tests.support.waiting import wait_until
from tests.support.webhooks import add_key

ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
AFTER_SECONDS = (0.2, 2.5)
TOPIC_PARTITIONS = 4
LAST_LINES = 20
FROZEN_SECONDS = 12.0
"""Longer than a group waits for a member: the other deliverer takes over meanwhile."""


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("delivery-kills")) as made:
        yield made


class Deliveries:
    """A worker, a dispatcher and two deliverers, some of which are killed and started again."""

    def __init__(self, scene: Scene, stack: Stack) -> None:
        self.scene = scene
        self.stack = stack
        self.worker: Process = scene.worker()
        self.dispatcher = scene.dispatcher()
        self.deliverers = [scene.deliverer(), scene.deliverer()]

    def supervise(self) -> None:
        """Start again what has ended by itself: a deliverer that finds no broker as it starts says so, and ends."""
        if not self.dispatcher.alive:
            self.dispatcher = self.scene.dispatcher()
        self.deliverers = [each if each.alive else self.scene.deliverer() for each in self.deliverers]

    def harm(self, part: str, chance: random.Random) -> None:
        """Kill a part and start it again at once, or freeze a deliverer for a while."""
        which = chance.randrange(2)
        match part:
            case "dispatcher":
                self.dispatcher.kill()
                self.dispatcher = self.scene.dispatcher()
            case "deliverer":
                self.deliverers[which].kill()
                self.deliverers[which] = self.scene.deliverer()
            case "frozen deliverer":
                self.deliverers[which].freeze()
                threading.Event().wait(FROZEN_SECONDS)
                self.deliverers[which].thaw()
            case "kafka":
                self.stack.kill_kafka()
                self.stack.start_kafka()
            case "postgres":
                self.stack.kill_postgres()
                self.stack.start_postgres()


def test_every_applied_event_reaches_each_endpoint_whatever_is_killed(scene: Scene, private_stack: Stack) -> None:
    """Delivered or dead, none lost; a repeat has the id of the delivery that it repeats."""
    chance = random.Random(SEED)
    _, sender = asyncio.run(add_key(scene.settings))
    harms = ["dispatcher", "deliverer", "frozen deliverer", "kafka", "postgres"] * ROUNDS
    chance.shuffle(harms)
    with subscribers(SEED) as there:
        for path in ("good", "failing"):
            asyncio.run(add_endpoint(scene.settings, f"http://127.0.0.1:{there.port}/{path}"))
        deliveries = Deliveries(scene, private_stack)
        _, port = scene.ingress()
        load = WebhookLoad(sender, port, seed=SEED)
        with load.running():
            wait_until(lambda: there.accepted, "the first event is delivered")
            for part in harms:
                threading.Event().wait(chance.uniform(*AFTER_SECONDS))
                deliveries.harm(part, chance)
                before = there.accepted.total()

                def go_on(before: int = before) -> bool:
                    deliveries.supervise()
                    return there.accepted.total() > before

                wait_until(go_on, f"deliveries go on after {part}")

        def all_done() -> bool:
            deliveries.supervise()
            return undone(scene) == 0

        wait_until_caught_up(scene)
        wait_until(all_done, lambda: f"all is delivered or dead: {state(scene, there)}")
    applied = applied_events(scene)
    delivered = {path: sum(1 for where, _ in there.accepted if where == path) for path in ("/good", "/failing")}
    repeats = there.accepted.total() - len(there.accepted)
    # An attempt that a kill left unrecorded is repeated: what was accepted may be dead by its last one.
    dead_alone = dead(scene) - {delivery for _, delivery in there.accepted}
    print(f"seed {SEED}: {harms}; {load.accepted_count} accepted, {applied} applied, delivered {delivered},"
          f" {len(dead_alone)} dead, {repeats} accepted a second time, {there.came.total()} requests")  # fmt: skip
    assert applied > 0
    assert delivered["/good"] + delivered["/failing"] + len(dead_alone) == 2 * applied
    assert delivered["/good"] == applied
    assert repeats <= len(harms) * TOPIC_PARTITIONS * DelivererLimits().unrecorded_max


def count(scene: Scene, query: str) -> int:
    ((found,),) = scene.query(query)
    assert isinstance(found, int)
    return found


def applied_events(scene: Scene) -> int:
    return count(
        scene,
        "SELECT count(*) AS n FROM event_stream WHERE topic = 'genesis.events' AND disposition = 'applied'",
    )


def dead(scene: Scene) -> set[str]:
    """Return the ids of the deliveries that are dead."""
    return {str(row[0]) for row in scene.query("SELECT id::text FROM webhook_deliveries WHERE state = 'dead'")}


def undone(scene: Scene) -> int:
    """How many deliveries are neither delivered nor dead, by what is recorded."""
    done = count(scene, "SELECT count(*) AS n FROM webhook_deliveries WHERE state IN ('delivered', 'dead')")
    return 2 * applied_events(scene) - done


def state(scene: Scene, there: Subscribers) -> str:
    """Return what waits, for what, and what each process has said last."""
    states = scene.query("SELECT state::text AS state, count(*) AS n FROM webhook_deliveries GROUP BY state")
    waits = scene.query(
        "SELECT partition, left(endpoint_id::text, 8) AS endpoint, hop, record IS NULL AS in_topic,"
        " due_at < now() AS overdue, count(*) AS n FROM delivery_waits GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    )
    said = "\n".join(
        f"{each.name} {'runs' if each.alive else 'has ended'}: "
        + " | ".join(each.log.read_text(encoding="utf-8").splitlines()[-LAST_LINES:])
        for each in scene.processes
    )
    accepted = Counter(path for path, _ in there.accepted)
    return f"{states}, {applied_events(scene)} applied, {accepted} accepted; waits {waits}\n{said}"
