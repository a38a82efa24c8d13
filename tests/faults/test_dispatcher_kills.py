"""kill -9 of a real dispatcher, under load: every applied event has a delivery, and copies are told by their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from runtime.settings import Settings
from tests.conftest import DEFAULT_PARTITIONS, Database, MakeTopic
from tests.support.dispatching import add_endpoint, read_deliveries, without_copies
from tests.support.faults.scene import Process, Scene, scene_of
from tests.support.load import fill, some_events
from tests.support.long_form import sized
from tests.support.waiting import wait_until, wait_until_async

KILLS = sized(4, 10)
EVENTS = 1_500


@pytest.fixture
def scene(settings: Settings, database: Database, topic: str, tmp_path: Path) -> Iterator[Scene]:
    with scene_of(settings, database.superuser_url, topic, tmp_path) as made:
        yield made


DONE = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM checkpoints WHERE consumer = 'dispatcher'"


def records_done(scene: Scene) -> int:
    """Return how many records the dispatcher is done with, of all partitions together."""
    ((done,),) = scene.query(DONE)
    assert isinstance(done, int)
    return done


async def test_kill_9_of_a_dispatcher_loses_nothing_and_its_copies_are_in_order(
    scene: Scene, settings: Settings, make_topic: MakeTopic
) -> None:
    """At some point of its work each time; an endpoint that is added meanwhile gets what comes after it."""
    topic = await make_topic(family="genesis.deliveries")

    def start() -> Process:
        # In a group of its own: the session of a killed one needs a while to end.
        group = {"PLANT_CONSUMER_GROUP": f"{scene.topic}-{len(scene.processes)}"}
        return scene.dispatcher("--deliveries-topic", topic, **group)

    def is_at_work(before: int) -> bool:
        # One that finds no broker in time as it starts says so and ends: what runs services starts it again.
        nonlocal worker, dispatcher
        worker = worker if worker.alive else scene.worker()
        dispatcher = dispatcher if dispatcher.alive else start()
        return records_done(scene) > before

    worker = scene.worker()
    endpoints = [await add_endpoint(settings, 1), await add_endpoint(settings, 2)]
    dispatcher = start()
    wait_until(
        lambda: len({line["partition"] for line in dispatcher.logged("partition.acquired")}) == DEFAULT_PARTITIONS,
        "the dispatcher has its partitions",
    )
    seeds = itertools.count(1)
    sent = []
    for _ in range(KILLS):
        before = records_done(scene)
        events = some_events(EVENTS, seed=next(seeds))
        fill(scene.settings, scene.topic, iter(events))
        sent += events
        wait_until(partial(is_at_work, before), "the dispatcher is at work")
        dispatcher.kill()
        dispatcher = start()
    late = await add_endpoint(settings, 3)
    wanted = {(event.event_id, endpoint_id) for event in sent for endpoint_id in (*endpoints, late)}
    found: set[tuple[UUID, UUID]] = set()

    async def are_there() -> bool:
        found.clear()
        found.update((each.queued.event_id, each.queued.endpoint_id) for each in await read_deliveries(settings, topic))
        return wanted <= found

    # First without reading all deliveries again and again.
    wait_until(lambda: is_at_work(len(sent) - 1), "the dispatcher is done with each record")
    await wait_until_async(are_there, lambda: f"{len(found)} of {len(wanted)} deliveries are there")
    assert dispatcher.stop() == 0
    published = await read_deliveries(settings, topic)
    taken = without_copies(published)
    print(f"{len(published)} records, {len(published) - len(taken)} of them copies, after {KILLS} kills")
    assert len(taken) == len(wanted)
    assert {(each.queued.event_id, each.queued.endpoint_id) for each in taken} == wanted
