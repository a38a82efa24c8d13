"""A read model whose SQL fails on one row of many; `PLANT_FAULT_ROWS` (10 000) says of how many."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from devstack import sql
from projections.read_model import READ_MODELS
from projections.session import Session
from runtime.settings import Settings
from schemas.events import AgentOnboarded, Event
from tests.conftest import Database, MakeTopic
from tests.support.faults.evidence import assert_chains_whole, dispositions
from tests.support.faults.scene import Process, Scene, scene_of
from tests.support.load import events, fill
from tests.support.made_models import AGENTS
from tests.support.model_tables import model_tables
from tests.support.read_model_folds import FOLDS, Applied
from tests.support.waiting import DEADLINE_SECONDS, wait_until

ROWS = int(os.environ.get("PLANT_FAULT_ROWS", "10000"))
REFUSED_OFFSET = ROWS * 2 // 3 + 7
REFUSED_AGENT = UUID(int=7)
CONSTRAINT = f"ALTER TABLE agents_v1.agents ADD CONSTRAINT refused CHECK (agent_id <> '{REFUSED_AGENT}')"
DEADLINE = DEADLINE_SECONDS + ROWS / 500
LAGGING = "SELECT next_offset, stop_reason FROM model_checkpoints WHERE topic = $1 AND projection = 'agents'"
CAUGHT_UP = "SELECT projection FROM projection_checkpoints WHERE topic = $1 AND next_offset = $2"
HALVINGS_MAX = 40
"""Slices of 10 000 records are halved 14 times; where a smaller one passes, they grow, and halve again."""
EVERYTHING = {"log", *(model.name for model in READ_MODELS if not model.starts_paused)}


@pytest.fixture
async def one_partition(make_topic: MakeTopic) -> str:
    return await make_topic(1)


@pytest.fixture
def scene(settings: Settings, database: Database, one_partition: str, tmp_path: Path) -> Iterator[Scene]:
    with scene_of(settings, database.superuser_url, one_partition, tmp_path) as made:
        yield made


def made_events() -> Iterator[Event]:
    """Events of a thousand agents, one of which has a single event."""
    for number, event in enumerate(events(ROWS)):
        if number == REFUSED_OFFSET:
            head = {"event_id": event.event_id, "occurred_at": event.occurred_at}
            yield AgentOnboarded(**head, agent_id=REFUSED_AGENT, name="refused", skill_ids=())
        else:
            yield event


def test_a_model_stops_at_the_one_row_that_it_cannot_have(scene: Scene) -> None:
    """Its tables hold all before that row and nothing of it; the log and the other models are at the end.

    The row is found in a number of slices that grows with the logarithm of the rows. Once mended it goes on.
    """
    sql.execute(scene.environ["PLANT_DATABASE_OWNER_URL"], [CONSTRAINT])
    fill(scene.settings, scene.topic, made_events())
    worker = scene.worker()

    took = wait_until(lambda: stopped_at(scene) == REFUSED_OFFSET, lambda: f"it stops: {stopped_at(scene)}", DEADLINE)
    wait_until(lambda: caught_up(scene) == EVERYTHING - {"agents"}, lambda: f"{caught_up(scene)}", DEADLINE)

    assert_agents(scene, REFUSED_OFFSET)
    assert dispositions(scene) == {"applied": ROWS}
    tried = Counter({name: len(worker.logged(name)) for name in ("models.slice_halved", "models.folded")})
    print(f"{ROWS} rows: stopped at row {REFUSED_OFFSET} within {took:.1f} s of starting the worker; {dict(tried)}")
    assert tried["models.slice_halved"] <= HALVINGS_MAX
    assert tried["models.folded"] <= HALVINGS_MAX + ROWS // 1_000

    sql.execute(scene.environ["PLANT_DATABASE_OWNER_URL"], ["ALTER TABLE agents_v1.agents DROP CONSTRAINT refused"])
    started_again(scene, worker)
    wait_until(lambda: caught_up(scene) == EVERYTHING, lambda: f"{caught_up(scene)}", DEADLINE)
    assert_agents(scene, ROWS)
    assert_chains_whole(scene, ROWS)


def started_again(scene: Scene, worker: Process) -> None:
    assert worker.stop() == 0
    scene.worker()


def stopped_at(scene: Scene) -> int | None:
    """Return the offset at which the model is stopped by name; None while it is not."""
    for next_offset, stop_reason in scene.query(LAGGING, (scene.topic,)):
        if stop_reason is not None:
            return int(str(next_offset))
    return None


def caught_up(scene: Scene) -> set[str]:
    """Return what is at the topic's end."""
    return {str(name) for (name,) in scene.query(CAUGHT_UP, (scene.topic, ROWS))}


def assert_agents(scene: Scene, end: int) -> None:
    """The tables are the oracle's of all records below an offset."""
    applied = (Applied(0, offset, event) for offset, event in enumerate(made_events()) if offset < end)
    session = Session(scene.environ["PLANT_DATABASE_SUPERUSER_URL"])
    try:
        session.script("SET timezone = 'UTC'")
        assert model_tables(session, AGENTS) == FOLDS["agents"](applied)
    finally:
        session.close()
