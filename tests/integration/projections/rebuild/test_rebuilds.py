"""Rebuilds as the database keeps them: one operator at a time, two builds at most, and what is retired is gone."""

from __future__ import annotations

import pytest

from projections.install import install
from projections.rebuild import choice, rebuilds, retirement, swap
from projections.rebuild.errors import RebuildRefused, RebuildRunning
from projections.session import Session
from tests.conftest import Database
from tests.support.rebuilding import ProjectedLog, begun, fill, known, rebuilt, session_of
from tests.support.waiting import DEADLINE_SECONDS

FED = "SELECT read_models FROM checkpoints WHERE consumer = 'projector' AND partition = 0"


def test_a_second_operator_is_refused_by_name(database: Database, projected_log: ProjectedLog, owner: Session) -> None:
    """While the first one's process lives; another read model can be rebuilt meanwhile."""
    rebuilds.hold(owner, "agents", rebuilds.builds_of(owner, "agents"))
    model = begun(owner)
    with session_of(database.owner_url) as second:
        rebuilds.hold(second, "skills", rebuilds.builds_of(second, "skills"))
        with pytest.raises(RebuildRunning, match="agents is being rebuilt") as refused:
            rebuilds.hold(second, "agents", rebuilds.builds_of(second, "agents"))
        assert f"an operator has begun {model.key} at 2" in refused.value.why
        owner.close()
        rebuilds.hold(second, "agents", rebuilds.builds_of(second, "agents"))
        assert choice.unfinished(rebuilds.builds_of(second, "agents")) == model


def test_there_are_two_builds_at_most(database: Database, projected_log: ProjectedLog, owner: Session) -> None:
    """A rebuild that is filled is swapped or retired before the next one, and so is what a swap has left."""
    made = rebuilt(database, owner)
    with pytest.raises(RebuildRefused, match=f"{made.key} is there beside"):
        choice.unfinished(rebuilds.builds_of(owner, "agents"))
    swap.move(owner, known(owner, made.key), known(owner, "agents/1"), wait_seconds=DEADLINE_SECONDS)
    with pytest.raises(RebuildRefused, match="agents/1 is there beside"):
        choice.unfinished(rebuilds.builds_of(owner, "agents"))


def test_the_registry_is_not_rebuilt(database: Database, projected_log: ProjectedLog, owner: Session) -> None:
    """Its fold writes to the entity tables, of which there is one set."""
    with pytest.raises(RebuildRefused, match="registry can't be rebuilt"):
        begun(owner, "registry")


@pytest.mark.parametrize(("name", "version"), [("nobody", None), ("agents", 9)])
def test_a_read_model_that_there_is_not_is_refused(
    projected_log: ProjectedLog, owner: Session, name: str, version: int | None
) -> None:
    """By its name, or its version."""
    with pytest.raises(RebuildRefused, match="There is no"):
        rebuilds.source_of(rebuilds.builds_of(owner, name), name, version)


def test_workers_have_a_rebuild_at_once_and_share_the_checkpoint(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """No restart: they look, acquire their partitions again, and take it into the batch's transaction."""
    model = begun(owner)
    projected_log.look()
    assert model.key not in superuser.query(FED)[0][0]
    fill(database, owner, model)
    projected_log.project(20)
    assert rebuilds.following(owner, model) == (2, 2, 40, 2)
    projected_log.look()
    assert rebuilds.following(owner, model) == (0, 0, 0, 2)
    projected_log.project(20)
    assert rebuilds.following(owner, model) == (0, 0, 0, 2)
    assert model.key in superuser.query(FED)[0][0]


def test_a_build_is_retired_once_workers_have_left_it(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Its tables are dropped then, and neither an upgrade nor a worker makes them again; the log goes on."""
    made = rebuilt(database, owner)
    projected_log.look()
    swap.move(owner, known(owner, made.key), known(owner, "agents/1"), wait_seconds=DEADLINE_SECONDS)
    left = choice.retirable(rebuilds.builds_of(owner, "agents"), "agents")
    assert left.key == "agents/1"
    assert not retirement.retire(owner, left, wait_seconds=0)
    projected_log.look()
    again = choice.retirable(rebuilds.builds_of(owner, "agents"), "agents")
    assert retirement.retire(owner, again, wait_seconds=DEADLINE_SECONDS)
    assert install(database.owner_url) == []
    projected_log.acquire()
    projected_log.project(20)
    assert superuser.query("SELECT to_regnamespace('agents_v1') IS NULL AS gone") == [(True,)]
    assert made.key in superuser.query(FED)[0][0]
    with pytest.raises(RebuildRefused, match="no build to go back to"):
        choice.replaced(rebuilds.builds_of(owner, "agents"), known(owner, made.key))


def test_what_readers_see_is_not_retired(database: Database, projected_log: ProjectedLog, owner: Session) -> None:
    """Neither by choice nor by name."""
    with pytest.raises(RebuildRefused, match="There is no build of agents to retire"):
        choice.retirable(rebuilds.builds_of(owner, "agents"), "agents")
    with pytest.raises(RebuildRefused, match="agents/1 can't be retired"):
        retirement.retire(owner, known(owner, "agents/1"), wait_seconds=0)


def test_a_rebuild_that_is_being_filled_can_be_retired(
    database: Database, projected_log: ProjectedLog, owner: Session, superuser: Session
) -> None:
    """Nothing of it is left."""
    model = begun(owner)
    assert retirement.retire(owner, known(owner, model.key), wait_seconds=0)
    assert superuser.query(f"SELECT to_regnamespace('{model.schema}') IS NULL AS gone") == [(True,)]
    assert choice.unfinished(rebuilds.builds_of(owner, "agents")) is None
