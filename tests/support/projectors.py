"""Projectors of partitions, and both of their ways to Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from projections import engine
from projections.engine import PartitionProjector
from projections.read_model import ReadModel
from projections.session import Session
from tests.conftest import Database
from tests.support.batches import TOPIC
from tests.support.made_models import AGENTS

AGENT_ROWS = "SELECT to_json(a)::text AS row FROM agents_v1.agents AS a ORDER BY agent_id"

MODELS: tuple[ReadModel, ...] = (AGENTS,)
"""The read models of the projectors here: tests of the engine count the statements and checkpoints of one."""

MakeProjector = Callable[[int], PartitionProjector]


@pytest.fixture(params=[0, 100], ids=["copied", "inline"])
def inline_records_max(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to Postgres: small batches go as text, and everything must hold for both."""
    monkeypatch.setattr(engine, "INLINE_RECORDS_MAX", request.param)


@pytest.fixture
def make_projector(database: Database) -> Iterator[MakeProjector]:
    made: list[PartitionProjector] = []

    def make(partition: int = 0) -> PartitionProjector:
        made.append(PartitionProjector(database.writer_url, TOPIC, partition, MODELS))
        return made[-1]

    yield make
    for projector in made:
        projector.forget()  # what it counts of stopped models would be seen by other tests


@pytest.fixture
def projector(make_projector: MakeProjector) -> PartitionProjector:
    return make_projector(0)


@pytest.fixture
def superuser(database: Database) -> Iterator[Session]:
    session = Session(database.superuser_url)
    yield session
    session.close()
