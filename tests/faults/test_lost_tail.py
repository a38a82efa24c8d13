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

    A worker and a dispatcher. Those that run are held still meanwhile, so they learn of nothing but the leader's epoch.
    """
    own_topic(scene, "running" if running else "stopped")
    for seed, count in enumerate((KEPT, LOST)):
        fill(scene.settings, scene.topic, events(count, seed=seed + 10 * running))
    patient = {"PLANT_WORKER_SESSION_TIMEOUT_SECONDS": "300"}
    both = [scene.worker(**patient), scene.dispatcher(**patient)]
    wait_until_caught_up(scene)
    wait_until(lambda: dispatched(scene) == KEPT + LOST, "the dispatcher has passed them")
    assert dispositions(scene) == {"applied": KEPT + LOST}
    for each in both:
        if running:
            each.freeze()
        else:
            each.stop()

    lose_tail(scene, private_stack, KEPT)
    fill(scene.settings, scene.topic, events(GROWN, seed=5 + 10 * running))
    assert log_ends(scene) == {0: KEPT + GROWN}
    if running:
        for each in both:
            each.thaw()
    else:
        both = [scene.worker(), scene.dispatcher()]

    for each in both:
        wait_until(lambda each=each: each.logged("partition.stopped"), f"the partition of {each.name} stops")
        for stopped in each.logged("partition.stopped"):  # again, where it was acquired again
            assert stopped["error"] == "LogTruncated"
            assert f"offset {KEPT + LOST - 1}" in str(stopped["why"])
    assert dispositions(scene) == {"applied": KEPT + LOST}
    assert dispatched(scene) == KEPT + LOST
    for each in both:
        each.kill()


def dispatched(scene: Scene) -> object:
    """Return the offset that the dispatcher of the topic reads next."""
    rows = scene.query(
        "SELECT next_offset FROM checkpoints WHERE consumer = 'dispatcher' AND topic = $1", (scene.topic,)
    )
    return rows[0][0] if rows else None


def lose_tail(scene: Scene, stack: Stack, offset: int) -> None:
    """Kill the broker and cut the log at this offset; the broker is back when this returns."""
    stack.kill_broker(1)
    cut_log(stack.home, scene.topic, 0, offset)
    stack.start_broker(1)
