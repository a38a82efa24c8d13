"""kill -9 of dispatchers and deliverers while dead letters are redriven: each is delivered, and copies are known."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
from collections.abc import Iterator

import pytest

from deliveries.deliverer.delivery_process import DelivererLimits
from deliveries.redrive.orders import StoredRedrive
from deliveries.redrive.selection import RedriveSelection
from devstack import sql
from devstack.stack import Stack
from tests.support.delivering import add_endpoint
from tests.support.faults.scene import Scene, private_scene
from tests.support.faults.subscribers import subscribers
from tests.support.load import events, fill
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import wait_until

SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
ROUNDS = int(os.environ.get("PLANT_FAULT_ROUNDS", "1"))
EVENTS = 3_000
RATE_PER_SECOND = 400
AFTER_SECONDS = (0.1, 1.0)
TOPIC_PARTITIONS = 4


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("redrive-kills")) as made:
        yield made


async def _order(scene: Scene) -> int:
    async with open_redrives(scene.settings) as redrives:
        return await redrives.order(redrive_order(rate_per_second=RATE_PER_SECOND), RedriveSelection())


async def _find(scene: Scene, number: int) -> tuple[StoredRedrive, dict[str, int]]:
    async with open_redrives(scene.settings) as redrives:
        return await redrives.find(number), await redrives.recorded(number)


def test_each_dead_letter_is_delivered_whatever_is_killed(scene: Scene) -> None:
    """None is lost; what is delivered twice was under way as a deliverer was killed, whatever dispatchers repeat."""
    chance = random.Random(SEED)
    with subscribers(SEED) as there:
        asyncio.run(add_endpoint(scene.settings, f"http://127.0.0.1:{there.port}/good"))
        scene.worker()
        dispatcher, deliverer = scene.dispatcher(), scene.deliverer()
        fill(scene.settings, scene.topic, events(EVENTS, agents=60))

        def recorded(state: str) -> int:
            ((found,),) = scene.query(f"SELECT count(*) AS n FROM webhook_deliveries WHERE state = '{state}'")
            assert isinstance(found, int)
            return found

        wait_until(lambda: recorded("delivered") == EVENTS, lambda: f"{recorded('delivered')} are delivered")
        before = there.accepted.copy()
        sql.execute(scene.environ["PLANT_DATABASE_SUPERUSER_URL"], ["UPDATE webhook_deliveries SET state = 'dead'"])
        number = asyncio.run(_order(scene))

        def all_done() -> bool:
            found, states = asyncio.run(_find(scene, number))
            return found.state == "finished" and states == {"delivered": EVENTS}

        harms = ["dispatcher", "deliverer", "dispatcher", "dispatcher"] * ROUNDS
        chance.shuffle(harms)
        for part in harms:
            threading.Event().wait(chance.uniform(*AFTER_SECONDS))
            if part == "dispatcher":
                dispatcher.kill()
                dispatcher = scene.dispatcher()
            else:
                deliverer.kill()
                deliverer = scene.deliverer()
            sent = there.accepted.total()
            # On a fast machine all may be delivered before the last kill.
            wait_until(
                lambda sent=sent: there.accepted.total() > sent or all_done(),  # type: ignore[misc]
                f"the redrive goes on after {part}",
            )
        wait_until(all_done, lambda: f"all are delivered: {asyncio.run(_find(scene, number))}")
    again = there.accepted - before
    repeats = again.total() - len(again)
    killed = harms.count("deliverer")
    print(f"seed {SEED}: {harms}; {EVENTS} dead letters, {len(again)} delivered, {repeats} of them a second time")
    assert len(again) == EVENTS
    assert repeats <= killed * TOPIC_PARTITIONS * DelivererLimits().unrecorded_max
