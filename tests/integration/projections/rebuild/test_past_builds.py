"""Rebuilds of the log up to a time: what a read model was then, fed by nobody and shown to no reader."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from projections.rebuild import choice, rebuilds, retirement
from projections.rebuild.end_offsets import end_offsets
from projections.rebuild.errors import RebuildRefused
from projections.rebuild.fill import Filler, unfilled
from projections.session import Session
from projections.stored_builds import StoredBuild
from tests.conftest import Database
from tests.support.batches import TOPIC
from tests.support.made_models import AGENTS, RATINGS
from tests.support.model_tables import model_tables
from tests.support.rebuilding import ProjectedLog, known

FIRST = datetime.fromtimestamp(1_760_000_000, UTC)
THEN = FIRST + timedelta(milliseconds=149)
"""When the last records of the fixture were made: one a millisecond."""


def begun_then(owner: Session, name: str) -> StoredBuild:
    """Begin a rebuild of a read model as it was then."""
    return rebuilds.begin(owner, rebuilds.source_of(rebuilds.builds_of(owner, name), name, None), "me", "why", THEN)


def test_the_log_ends_before_the_first_record_that_is_later(
    projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """In each partition by itself, and at the log's checkpoint where none is."""
    assert end_offsets(owner, THEN) == {(TOPIC, 0): 150, (TOPIC, 1): 150}
    assert end_offsets(owner, FIRST) == {(TOPIC, 0): 1, (TOPIC, 1): 1}
    assert end_offsets(owner, FIRST - timedelta(milliseconds=1)) == {(TOPIC, 0): 0, (TOPIC, 1): 0}
    superuser.script("UPDATE checkpoints SET next_offset = 100 WHERE partition = 0")
    assert end_offsets(owner, THEN) == {(TOPIC, 0): 100, (TOPIC, 1): 150}


def test_a_read_model_is_made_as_it_was_then(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Two in one pass. Workers and swaps leave them alone, and they are retired like others."""
    superuser.script("SET timezone = 'UTC'")
    models = (AGENTS, RATINGS)
    were = [model_tables(superuser, model) for model in models]
    projected_log.project(50)
    made = [begun_then(owner, model.name) for model in models]
    ends = end_offsets(owner, THEN)
    assert [each.lag for each in unfilled(owner, made, ends)] == [300, 300]
    assert choice.unfinished(rebuilds.builds_of(owner, "agents"), THEN) == made[0]
    assert choice.unfinished(rebuilds.builds_of(owner, "agents")) is None
    Filler(database.owner_url, made, lambda _model, _count: None, ends=ends).run(owner)
    for each in made:
        rebuilds.finish(owner, each)
    projected_log.look()
    projected_log.project(10)
    assert [model_tables(superuser, each) for each in made] == were
    assert [model_tables(superuser, each) for each in models] != were

    of_agents = rebuilds.builds_of(owner, "agents")
    with pytest.raises(RebuildRefused, match="no build of agents beside") as refused:
        choice.beside(of_agents)
    assert f"{made[0].key} is the log as of 2025-10-09T08:53:20.149000Z" in refused.value.why
    with pytest.raises(RebuildRefused, match="as of that time already"):
        choice.unfinished(of_agents, THEN)
    assert choice.unfinished(of_agents, FIRST) is None
    assert choice.retirable(of_agents, "agents") == known(owner, made[0].key)
    assert retirement.retire(owner, known(owner, made[0].key), wait_seconds=0)
