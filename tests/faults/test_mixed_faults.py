"""Crash, rebalance, freeze, lost sessions, poison, control records and faults of read models, all mixed by a seed.

`PLANT_FAULT_SEED` chooses the first seed, and is printed; `PLANT_FAULT_MIXES` (1) says how many there are, one after
another, and `PLANT_FAULT_STEPS` (6) how many things happen with each. With more than one, Postgres is this module's own
and is killed as well.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.settings import Settings
from tests.conftest import DEFAULT_PARTITIONS, Database
from tests.support import log_tables
from tests.support.faults.mixed_faults import MixedFaults, Server
from tests.support.faults.mixed_scenes import copied_scene
from tests.support.faults.published_streams import PublishedStreams
from tests.support.faults.scene import Scene, private_scene, scene_of

MIXES = int(os.environ.get("PLANT_FAULT_MIXES", "1"))
STEPS = int(os.environ.get("PLANT_FAULT_STEPS", "6"))
SEED = int(os.environ.get("PLANT_FAULT_SEED", "0")) or secrets.randbelow(1_000_000)
WORKERS_MAX = 4 if MIXES == 1 else 1_000
ENTITIES = 12
RANGE_OFFSETS = 100
"""A range of the log is full, and closed, after so many."""


@pytest.fixture(scope="module")
def own_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene | None]:
    """A migrated database on a stack of this module's own, where there are many mixes; None otherwise."""
    if MIXES == 1:
        yield None
        return
    with private_scene(request.getfixturevalue("private_stack"), tmp_path_factory.mktemp("mixed")) as scene:
        yield scene


@pytest.mark.parametrize("number", range(MIXES))
def test_no_mix_of_faults_makes_log_or_read_models_wrong(
    request: pytest.FixtureRequest, own_stack: Scene | None, tmp_path: Path, number: int
) -> None:
    """At any moment, and once all is mended: dispositions, chains, queues and all read models are the oracle's."""
    seed = SEED + number
    print(f"seed {seed}")
    with fresh_scene(request, own_stack, tmp_path, f"mixed_{seed}") as (scene, server):
        scene.environ["PLANT_WORKER_SESSION_TIMEOUT_SECONDS"] = "5"
        log_tables.set_range_offsets(scene.environ["PLANT_DATABASE_OWNER_URL"], RANGE_OFFSETS)
        streams = PublishedStreams(scene.settings, scene.topic, DEFAULT_PARTITIONS, seed, ENTITIES)
        faults = MixedFaults(scene, streams, seed, workers_max=WORKERS_MAX, server=server)
        try:
            faults.run(STEPS)
            faults.settle()
            faults.check(whole=True)
            streams.skip_waiting()
            faults.wait_until_caught_up()
            faults.check(whole=True)
        finally:
            print(f"seed {seed}: {', '.join(faults.done)}; {sum(streams.ends.values())} records")


@contextmanager
def fresh_scene(
    request: pytest.FixtureRequest, own_stack: Scene | None, folder: Path, name: str
) -> Iterator[tuple[Scene, Server | None]]:
    """Yield a scene with an empty database and topic, and its server if that may be killed."""
    if own_stack is None:
        database: Database = request.getfixturevalue("database")
        settings: Settings = request.getfixturevalue("settings")
        with scene_of(settings, database.superuser_url, request.getfixturevalue("topic"), folder) as scene:
            yield scene, None
        return
    stack = request.getfixturevalue("private_stack")
    with copied_scene(stack, own_stack, folder, name, DEFAULT_PARTITIONS) as scene:
        yield scene, stack
