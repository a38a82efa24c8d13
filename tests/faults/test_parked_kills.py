"""kill -9 of a real worker between poison and its redrive, and while a control record takes effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from projections.engine import PartitionProjector
from projections.install import install
from projections.read_model import READ_MODELS
from projections.session import Session
from runtime.settings import Settings
from schemas.events import AgentAvailable, AgentOnboarded, Event
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of, record
from tests.support.faults.evidence import assert_chains_whole, dispositions, log_ends
from tests.support.faults.scene import Process, Scene, scene_of
from tests.support.poison_records import key_of, over_a_limit, redrive, skip, unreadable
from tests.support.raw_records import RawRecord, append_raw
from tests.support.waiting import wait_until

PARTITION = 1
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AGENTS = [UUID(int=number) for number in range(1, 5)]
LOG = """
SELECT "offset", disposition::text AS d, control_offset, event_id::text AS e, entity_id::text AS n, reason
FROM log_records ORDER BY "offset"
"""


def onboarded(number: int, agent_id: UUID) -> AgentOnboarded:
    ids = {"event_id": UUID(int=1000 * agent_id.int + number), "agent_id": agent_id, "occurred_at": NOON}
    return AgentOnboarded(**ids, name=f"name {number}", skill_ids=())


def available(number: int, agent_id: UUID) -> AgentAvailable:
    ids = {"event_id": UUID(int=1000 * agent_id.int + number), "agent_id": agent_id, "occurred_at": NOON}
    return AgentAvailable(**ids, available=number % 2 == 0)


def poisoned(number: int) -> list[Event | Record]:
    """A poison record of an agent, and two events behind it."""
    agent_id = AGENTS[number]
    bad = unreadable(agent_id) if number % 2 else over_a_limit(onboarded(1, agent_id), name="x" * 300)
    return [bad, available(2, agent_id), available(3, agent_id)]


POISONED = [each for number in range(len(AGENTS)) for each in poisoned(number)]
"""The poison record of an agent is at three times its number."""
CONTROLS = [
    *(redrive(key_of(agent_id), 3 * number, onboarded(4, agent_id)) for number, agent_id in enumerate(AGENTS[:3])),
    skip(key_of(AGENTS[3]), 9),
]


@pytest.fixture
def scene(settings: Settings, database: Database, topic: str, tmp_path: Path) -> Iterator[Scene]:
    install(database.owner_url)
    with scene_of(settings, database.superuser_url, topic, tmp_path) as made:
        yield made


def worker(scene: Scene) -> Process:
    """Start a worker in a group of its own: the session of a killed one needs a while to end, and holds nothing."""
    return scene.worker(PLANT_CONSUMER_GROUP=f"{scene.topic}-{len(scene.processes)}")


async def append(scene: Scene, *records: Event | Record) -> None:
    pairs = [record(each) if isinstance(each, Event) else each for each in records]
    await append_raw(scene.settings, scene.topic, PARTITION, [RawRecord(*pair) for pair in pairs])


def wait_until_logged(scene: Scene) -> None:
    end = log_ends(scene)[PARTITION]
    wait_until(lambda: dispositions(scene).total() == end, lambda: f"{end} are logged: {dispositions(scene)}")


def wait_until_in_transaction(scene: Scene) -> None:
    """Wait until the owner of the partition waits for a lock, its control record's transaction open."""
    sql = """
        SELECT a.pid FROM partition_owners AS o JOIN pg_stat_activity AS a ON a.pid = o.backend_pid
        WHERE o.topic = $1 AND o.partition = $2 AND a.wait_event_type = 'Lock'
    """
    wait_until(lambda: scene.query(sql, (scene.topic, PARTITION)) != [], "the worker waits in its transaction")


def tables(superuser_url: str) -> dict[str, list[tuple[object, ...]]]:
    """The log, and the rows of every read model."""
    session = Session(superuser_url)
    try:
        session.script("SET timezone = 'UTC'")
        names = [f"{model.schema}.{table}" for model in READ_MODELS for table in model.tables]
        rows = {name: session.query(f"SELECT to_json(t)::text AS row FROM {name} AS t ORDER BY 1") for name in names}
        return {"log": session.query(LOG), **rows}
    finally:
        session.close()


def undisturbed(database: Database, records: Sequence[Event | Record]) -> dict[str, list[tuple[object, ...]]]:
    """What one owner makes of the records, in one batch."""
    install(database.owner_url)
    projector = PartitionProjector(database.writer_url, TOPIC, PARTITION, READ_MODELS)
    try:
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of(records, token=token, partition=PARTITION))
    finally:
        projector.close()
    return tables(database.superuser_url)


async def test_kill_9_between_poison_and_redrive_loses_and_repeats_nothing(
    scene: Scene, make_database: Callable[[], Database]
) -> None:
    """Before a control record comes, inside its transaction, and when its last statement is under way: each takes
    effect once, and log and read models are those of a run that nobody disturbed.
    """
    first = worker(scene)
    await append(scene, *POISONED)
    wait_until_logged(scene)
    assert dispositions(scene) == {"poison": 4, "parked": 8}
    first.kill()

    await append(scene, CONTROLS[0])
    second = worker(scene)
    wait_until_logged(scene)
    assert dispositions(scene) == {"poison": 4, "parked": 8, "control": 1}

    with scene.locked("agents_v1.agents"):
        await append(scene, CONTROLS[1])
        wait_until_in_transaction(scene)
        second.kill()
        # The former worker's backend still waits. The next owner ends it, and waits at the same lock.
        third = worker(scene)
        wait_until(lambda: owner(scene).endswith(f":{third.pid}"), "the next worker has the partition")
        assert dispositions(scene) == {"poison": 4, "parked": 8, "control": 1}
    wait_until_logged(scene)
    assert dispositions(scene) == {"poison": 4, "parked": 8, "control": 2}

    with scene.locked("checkpoints"):
        await append(scene, CONTROLS[2])
        wait_until_in_transaction(scene)
        third.kill()
    # Its backend goes on to the commit, though nobody waits for the answer, unless it had waited for too long.
    fourth = worker(scene)
    await append(scene, CONTROLS[3])
    wait_until_logged(scene)
    fourth.kill()

    await append(scene, *CONTROLS, onboarded(5, AGENTS[3]))
    fifth = worker(scene)
    wait_until_logged(scene)
    assert dispositions(scene) == {"poison": 4, "parked": 8, "control": 8, "applied": 1}
    assert fifth.stop() == 0
    assert_chains_whole(scene, 21)
    records = [*POISONED, *CONTROLS, *CONTROLS, onboarded(5, AGENTS[3])]
    assert tables(scene.environ["PLANT_DATABASE_SUPERUSER_URL"]) == undisturbed(make_database(), records)


def owner(scene: Scene) -> str:
    """Return the worker that acquired the partition last."""
    sql = "SELECT worker FROM partition_owners WHERE topic = $1 AND partition = $2"
    return str(scene.query(sql, (scene.topic, PARTITION))[0][0])
