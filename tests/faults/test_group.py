"""What can happen inside the group: a worker that is frozen in the middle, workers that come and go, another topic
under the same name.

`PLANT_FAULT_REBALANCES` (4) says how often the group is rebalanced while events come.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from projections.session import Session
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.faults.evidence import applied, assert_exactly_once, dispositions, log_ends, wait_until_caught_up
from tests.support.faults.promises import hold_promise
from tests.support.faults.scene import Process, Scene, scene_of
from tests.support.load import events, fill
from tests.support.waiting import wait_until

SESSION_SECONDS = 5
MOVES_SECONDS = 10.0
REBALANCES = int(os.environ.get("PLANT_FAULT_REBALANCES", "4"))
REBALANCE_SECONDS = 6.0
LAG_GONE_SECONDS = 10.0
COPIED = 4000


@pytest.fixture
def scene(settings: Settings, database: Database, topic: str, tmp_path: Path) -> Iterator[Scene]:
    with scene_of(settings, database.superuser_url, topic, tmp_path) as made:
        made.environ["PLANT_WORKER_SESSION_TIMEOUT_SECONDS"] = str(SESSION_SECONDS)
        yield made


def owners(scene: Scene) -> Counter[int]:
    """Return how many partitions each worker process has taken last, by its pid."""
    rows = scene.query("SELECT worker FROM partition_owners WHERE topic = $1 AND worker <> ''", (scene.topic,))
    return Counter(int(str(row[0]).rpartition(":")[2]) for row in rows)


def backends(scene: Scene, worker: Process, condition: str) -> list[int]:
    """Return the worker's backends that hold its partitions and are in this state."""
    sql = f"""
        SELECT a.pid FROM partition_owners AS o JOIN pg_stat_activity AS a ON a.pid = o.backend_pid
        WHERE o.topic = $1 AND o.worker LIKE '%:' || $2 AND {condition}
    """
    return [int(str(row[0])) for row in scene.query(sql, (scene.topic, str(worker.pid)))]


IN_COPY = "a.state = 'active' AND a.query ILIKE 'COPY%log%/%'"
LOCKED = "a.wait_event_type = 'Lock'"


def begin_a_copy(scene: Scene, worker: Process, blocker: Session) -> int:
    """Leave the worker inside a COPY that waits for the blocker's lock; return how many events that took.

    A batch of a few records is not copied, and a slow publisher makes such; then the load is sent again.
    """
    blocker.script("SET idle_in_transaction_session_timeout = 0")  # publishing may take long
    for attempt in range(1, 100):
        blocker.script("BEGIN")
        blocker.script("LOCK TABLE log_records IN SHARE MODE")
        fill(scene.settings, scene.topic, events(COPIED, seed=100 + attempt))
        wait_until(lambda: backends(scene, worker, LOCKED), "the worker writes its batch")
        if backends(scene, worker, f"{IN_COPY} AND {LOCKED}"):
            return attempt * COPIED
        blocker.script("ROLLBACK")
        wait_until_caught_up(scene)
    pytest.fail("the worker never copied a batch")


@contextmanager
def frozen_inside_copy(scene: Scene, worker: Process) -> Iterator[tuple[list[int], int]]:
    """Stop the worker's process while its backends are inside COPY; give those, and how many events were sent.

    A lock makes it certain: the COPY has begun and can't be answered, then the process is stopped, then the lock goes.
    """
    blocker = Session(scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
    try:
        sent = begin_a_copy(scene, worker, blocker)
        worker.freeze()
        blocker.script("ROLLBACK")
    finally:
        blocker.close()
    waiting = f"{IN_COPY} AND a.wait_event = 'ClientRead'"
    try:
        wait_until(lambda: backends(scene, worker, waiting), "the COPY waits for its client")
        yield backends(scene, worker, waiting), sent
    finally:
        worker.thaw()


def test_a_worker_frozen_inside_copy_loses_its_partitions_and_its_batch(scene: Scene) -> None:
    """The other worker gets them when the session ends, the stale batch leaves nothing, and both go on."""
    fill(scene.settings, scene.topic, events(4000))
    frozen, other = scene.worker(), scene.worker()
    wait_until(
        lambda: owners(scene) == {frozen.pid: 2, other.pid: 2}, lambda: f"each has two partitions: {owners(scene)}"
    )
    wait_until_caught_up(scene)

    with frozen_inside_copy(scene, frozen) as (inside, sent):
        moved = wait_until(lambda: owners(scene) == {other.pid: 4}, "the partitions move")
        wait_until_caught_up(scene)
        fill(scene.settings, scene.topic, events(2000, seed=8))
        wait_until_caught_up(scene)
        assert dispositions(scene) == {"applied": 6000 + sent}
        assert backends(scene, frozen, IN_COPY) == []
    wait_until(lambda: owners(scene) == {frozen.pid: 2, other.pid: 2}, lambda: f"the group settles: {owners(scene)}")
    fill(scene.settings, scene.topic, events(2000, seed=9))
    wait_until_caught_up(scene)

    assert inside
    assert assert_exactly_once(scene, []) == {"applied": 8000 + sent}
    assert frozen.alive
    assert other.alive
    assert not frozen.logged("partition.stopped") + other.logged("partition.stopped")
    promised = SESSION_SECONDS + MOVES_SECONDS
    hold_promise(f"frozen with {len(inside)} COPY open, all partitions were the other's later", moved, promised)


def test_a_storm_of_rebalances_changes_nothing(scene: Scene) -> None:
    """Workers join and leave in an orderly way, again and again, under load: each event is applied once, and the lag
    goes back to zero.
    """
    stop, sent = threading.Event(), [0]

    def publish() -> None:
        while not stop.is_set():
            sent[0] += fill(scene.settings, scene.topic, events(100, seed=1000 + sent[0]))
            stop.wait(0.3)

    running = [scene.worker(), scene.worker()]
    wait_until_assigned_again(running, Counter())
    publisher = threading.Thread(target=publish)
    publisher.start()
    started = time.monotonic()
    try:
        for number in range(REBALANCES):
            before = Counter({worker.pid: assignments(worker) for worker in running})
            if number % 2:
                assert running.pop(0).stop() == 0
            else:
                running.append(scene.worker())
            wait_until_assigned_again(running, before)
        took = time.monotonic() - started
        rows = applied(scene)
        wait_until(lambda: applied(scene) > rows, "work goes on")
    finally:
        stop.set()
        publisher.join()
    lagged = wait_until_caught_up(scene)

    assert assert_exactly_once(scene, []) == {"applied": sent[0]}
    assert all(worker.alive for worker in running)
    print(f"{sent[0]} events through {len(scene.processes)} workers")
    hold_promise(f"{REBALANCES} rebalances", took, REBALANCES * REBALANCE_SECONDS)
    hold_promise("the lag was gone", lagged, LAG_GONE_SECONDS)


def assignments(worker: Process) -> int:
    """Return how often the group has given a worker its partitions."""
    return len(worker.logged("partitions.assigned"))


def wait_until_assigned_again(running: Sequence[Process], before: Counter[int]) -> None:
    """Wait until the group has been rebalanced: each worker has its partitions once more than before."""
    wait_until(lambda: all(assignments(each) > before[each.pid] for each in running), "the group is rebalanced")


async def make_again(scene: Scene, agents: int) -> None:
    """Delete the topic and make one of the same name at once, longer than the one before."""
    client = AIOKafkaAdminClient(bootstrap_servers=scene.settings.kafka_address())
    await client.start()
    try:
        await client.delete_topics([scene.topic])
        codes = [1]
        while any(codes):  # the old one's deletion is done a moment later
            response = await client.create_topics([NewTopic(scene.topic, 4, 1)])
            codes = [code for _, code, *_ in response.topic_errors if code]
    finally:
        await client.close()
    fill(scene.settings, scene.topic, events(agents, seed=77))


@pytest.mark.parametrize("running", [True, False], ids=["under a running worker", "under a stopped one"])
async def test_another_topic_of_the_same_name_is_never_read(scene: Scene, running: bool) -> None:
    """Its partitions stop with a named error, and nothing is written.

    The running worker is held still while the topic is made again. So it learns nothing of the time between, and its
    next fetch, at an offset that both topics have, is answered with other records.
    """
    fill(scene.settings, scene.topic, events(400))
    worker = scene.worker(PLANT_WORKER_SESSION_TIMEOUT_SECONDS="60")
    wait_until_caught_up(scene)
    if running:
        worker.freeze()
    else:
        worker.stop()

    await make_again(scene, 4000)
    if running:
        worker.thaw()
    else:
        worker = scene.worker()

    wait_until(lambda: len(stops(worker)) == 4, lambda: f"every partition stops: {stops(worker)}")
    assert set(stops(worker).values()) == {"TopicRecreated"}
    assert dispositions(scene) == {"applied": 400}
    assert min(log_ends(scene).values()) > 400
    assert worker.alive


def stops(worker: Process) -> dict[object, object]:
    """Return the error that each partition has stopped with."""
    return {line["partition"]: line["error"] for line in worker.logged("partition.stopped")}
