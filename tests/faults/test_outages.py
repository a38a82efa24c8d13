"""Kafka or Postgres away for a while, or out of space, under load.

`PLANT_FAULT_AWAY_SECONDS` (8) says how long Postgres is away: longer than a session of a worker, which here has 5 s.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from devstack import processes, sql
from devstack.postgres_binaries import ensure_system_user
from devstack.stack import Stack
from tests.support.faults.evidence import (
    applied,
    assert_exactly_once,
    dispositions,
    wait_until_caught_up,
    wait_until_full_ranges_are_closed,
)
from tests.support.faults.promises import hold_promise
from tests.support.faults.scene import Process, Scene, private_scene
from tests.support.faults.webhook_load import WebhookLoad
from tests.support.load import events, fill
from tests.support.waiting import DEADLINE_SECONDS, wait_until
from tests.support.webhooks import Sender, add_key

AWAY_SECONDS = float(os.environ.get("PLANT_FAULT_AWAY_SECONDS", "8"))
RESUMES_SECONDS = 5.0


@pytest.fixture(scope="module")
def scene(private_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with private_scene(private_stack, tmp_path_factory.mktemp("outages")) as made:
        yield made


@pytest.fixture(scope="module")
def worker(scene: Scene) -> Process:
    return scene.worker()


@pytest.fixture(scope="module")
def way_in(scene: Scene) -> tuple[Sender, int]:
    """A key's owner, and the port of an ingress that knows the key."""
    _, sender = asyncio.run(add_key(scene.settings))
    return sender, scene.ingress()[1]


def members(scene: Scene) -> list[tuple[str, bytes]]:
    """Return the member ids and assignments of the workers' group."""

    async def ask() -> list[tuple[str, bytes]]:
        client = AIOKafkaAdminClient(bootstrap_servers=scene.settings.kafka_address())
        await client.start()
        try:
            (response,) = await client.describe_consumer_groups([scene.settings.consumer_group])
            ((_, _, state, _, _, found, *_rest),) = response.groups
            assert state == "Stable"
            return sorted((member[0], member[4]) for member in found)
        finally:
            await client.close()

    return asyncio.run(ask())


def test_postgres_away_keeps_the_group_and_loses_nothing(
    scene: Scene, private_stack: Stack, worker: Process, way_in: tuple[Sender, int]
) -> None:
    """Webhooks are taken all the while; the worker keeps its place in the group and takes up its work again."""
    load = WebhookLoad(*way_in, seed=1)
    with load.running():
        wait_until(lambda: applied(scene) > 100, "the worker is at work")
        before, assigned = members(scene), len(worker.logged("partitions.assigned"))
        private_stack.kill_postgres()
        accepted_before = load.accepted_count
        threading.Event().wait(AWAY_SECONDS)
        accepted_meanwhile = load.accepted_count - accepted_before
        assert members(scene) == before
        private_stack.start_postgres()
        rows = applied(scene)
        resumed = wait_until(lambda: applied(scene) > rows, "work is resumed")

    wait_until_caught_up(scene)

    assert accepted_meanwhile > 0
    assert members(scene) == before
    assert len(worker.logged("partitions.assigned")) == assigned
    found = assert_exactly_once(scene, load.accepted)
    print(f"away {AWAY_SECONDS:g} s, {accepted_meanwhile} accepted meanwhile; {found}")
    hold_promise("resumed", resumed, RESUMES_SECONDS)


def test_a_broker_that_restarts_is_503_at_the_door_and_a_pause_inside(
    scene: Scene, private_stack: Stack, worker: Process, way_in: tuple[Sender, int]
) -> None:
    """While the broker is away ingress answers 503 with Retry-After; the worker's process lives on and goes on."""
    load = WebhookLoad(*way_in, seed=2)
    with load.running():
        wait_until(lambda: load.accepted_count > 100, "webhooks are taken")
        broker = private_stack.state.kafka
        processes.send(broker, signal.SIGTERM)
        assert processes.wait_gone(broker, timeout_seconds=DEADLINE_SECONDS)
        wait_until(lambda: load.answers["503"] > 0, "ingress says so")
        private_stack.start_kafka()
        accepted, rows = load.accepted_count, applied(scene)
        resumed = wait_until(lambda: load.accepted_count > accepted and applied(scene) > rows, "both go on")

    wait_until_caught_up(scene)

    assert worker.alive
    assert load.answers.keys() <= {"200", "503"}
    assert load.retry_after
    assert all(seconds is not None and int(seconds) >= 1 for seconds in load.retry_after)
    found = assert_exactly_once(scene, load.accepted)
    print(f"{dict(load.answers)}, Retry-After {load.retry_after}, resumed after {resumed:.2f} s; {dict(found)}")


@contextmanager
def small_disk(scene: Scene, folder: Path) -> Iterator[Path]:
    """Put the ranges of the event log, those that come too, on a file system of 256 MB, and yield its folder."""
    superuser = scene.environ["PLANT_DATABASE_SUPERUSER_URL"]
    tables = sql.value(superuser, "SELECT array_agg(table_name) FROM log_ranges")
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        data = folder / "data"
        data.mkdir()
        folder.chmod(0o755)
        if user := ensure_system_user():
            shutil.chown(data, user, user)
        sql.execute(
            superuser, [f"CREATE TABLESPACE small LOCATION '{data}'", "GRANT CREATE ON TABLESPACE small TO PUBLIC"]
        )
        sql.execute(superuser, [f'ALTER TABLE log."{table}" SET TABLESPACE small' for table in tables])
        use_tablespace(superuser, "small")
        yield folder
    finally:
        use_tablespace(superuser, "")
        moved = [f"ALTER {kind} ALL IN TABLESPACE small SET TABLESPACE pg_default" for kind in ("TABLE", "INDEX")]
        sql.execute(superuser, [*moved, "CHECKPOINT"])
        sql.execute(superuser, ["DROP TABLESPACE IF EXISTS small"])
        # Lazily: a backend may still hold a file of the table that has moved away.
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def use_tablespace(superuser: str, name: str) -> None:
    """Have every session make its tables and indexes there from now on."""
    sql.execute(superuser, [f"ALTER SYSTEM SET default_tablespace = '{name}'", "SELECT pg_reload_conf()"])


def test_a_full_disk_is_waited_out(scene: Scene, private_stack: Stack, worker: Process) -> None:
    """Out of space, the worker waits with its partitions, and goes on when there is space again."""
    fill(scene.settings, scene.topic, events(400, seed=2))  # until then no partition has a range
    wait_until_caught_up(scene)
    with small_disk(scene, private_stack.home / "small") as folder:
        filler = folder / "filler"
        with filler.open("wb") as file:
            file.write(bytes(shutil.disk_usage(folder).free - 256 * 1024))
        fill(scene.settings, scene.topic, events(10_000, agents=200, seed=3))
        full = lambda: [line for line in worker.logged("partition.waiting") if "No space left" in str(line["why"])]  # noqa: E731
        wait_until(lambda: len(full()) > 3, "the worker finds the disk full")
        rows = dispositions(scene).total()
        filler.unlink()
        wait_until_caught_up(scene)

        assert dispositions(scene).total() > rows
        assert wait_until_full_ranges_are_closed(scene) > 0
        assert worker.alive
        assert_exactly_once(scene, [])
    print(f"refused for want of space {len(full())} times")
