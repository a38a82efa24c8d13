"""Kafka loses the end of a log that was read already, and grows past the checkpoint: named, and nothing is skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from devstack.stack import Stack
from tests.support.faults.evidence import dispositions, log_ends, wait_until_caught_up
from tests.support.faults.scene import Scene, private_scene
from tests.support.faults.segments import cut_log
from tests.support.load import events, fill
from tests.support.waiting import wait_until

KEPT, LOST, GROWN = 80, 20, 40


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("tail")) as made:
        yield made


def own_topic(scene: Scene, name: str) -> None:
    """Make a topic with one partition, and let the scene's worker and group be for it."""
    scene.topic = f"genesis.events-{name}"
    scene.environ["PLANT_CONSUMER_GROUP"] = name

    async def make() -> None:
        client = AIOKafkaAdminClient(bootstrap_servers=scene.settings.kafka_address())
        await client.start()
        try:
            await client.create_topics([NewTopic(scene.topic, 1, 1)])
        finally:
            await client.close()

    asyncio.run(make())


@pytest.mark.parametrize("running", [True, False], ids=["under a running worker", "under a stopped one"])
def test_a_log_that_lost_its_tail_and_grew_again_is_not_read_on(
    scene: Scene, private_stack: Stack, running: bool
) -> None:
    """Offsets 80 to 99 were logged; Kafka lost them and took 40 other events from 80 on. None of these is skipped.

    The running worker is held still meanwhile, so it learns of nothing but the leader's epoch.
    """
    own_topic(scene, "running" if running else "stopped")
    for seed, count in enumerate((KEPT, LOST)):
        fill(scene.settings, scene.topic, events(count, seed=seed + 10 * running))
    worker = scene.worker(PLANT_WORKER_SESSION_TIMEOUT_SECONDS="300")
    wait_until_caught_up(scene)
    assert dispositions(scene) == {"applied": KEPT + LOST}
    if running:
        worker.freeze()
    else:
        worker.stop()

    lose_tail(scene, private_stack, KEPT)
    fill(scene.settings, scene.topic, events(GROWN, seed=5 + 10 * running))
    assert log_ends(scene) == {0: KEPT + GROWN}
    if running:
        worker.thaw()
    else:
        worker = scene.worker()

    wait_until(lambda: worker.logged("partition.stopped"), "the partition stops")
    (stopped,) = worker.logged("partition.stopped")
    assert stopped["error"] == "LogTruncated"
    assert f"offset {KEPT + LOST - 1}" in str(stopped["why"])
    assert dispositions(scene) == {"applied": KEPT + LOST}
    worker.kill()


def lose_tail(scene: Scene, stack: Stack, offset: int) -> None:
    """Kill the broker and cut the log at this offset; the broker is back when this returns."""
    stack.kill_broker(1)
    cut_log(stack.home, scene.topic, 0, offset)
    stack.start_broker(1)
