"""Functions of the database that read models call: locked with the version, and others are refused by name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest

from projections import engine, fold, following_models, lagging_models
from projections.engine import PartitionProjector
from projections.errors import FunctionsChanged
from projections.fold_functions import function_hashes
from projections.install import install
from projections.lagging_models import LaggingModels
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session
from projections.stored_builds import load_builds
from schemas.events import AgentOnboarded
from streams.errors import ReadModelsChanged
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.made_models import AGENTS, REGISTRY

MODELS = (AGENTS, REGISTRY)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEFINITION = "SELECT pg_get_functiondef('fold_into_entity'::regproc) AS text"
STOPS = "SELECT projection, stop_reason FROM model_checkpoints"
NAMES = "SELECT a.id::text AS id, a.name FROM agents AS a ORDER BY a.id"


def onboarded(number: int) -> AgentOnboarded:
    ids = {"event_id": UUID(int=1000 + number), "agent_id": UUID(int=number), "occurred_at": NOON}
    return AgentOnboarded(**ids, name=f"agent {number}", skill_ids=())


def changed(function: str) -> str:
    """The definition of another fold."""
    return function.replace("state ->> 'name'", "upper(state ->> 'name')")


@pytest.fixture
def superuser(database: Database) -> Iterator[Session]:
    """A session that sees all rows, once the registry is resumed."""
    install(database.owner_url, MODELS)
    with contextlib.closing(Session(database.superuser_url)) as session:
        session.script("UPDATE read_model_builds SET paused = false")
        yield session


@pytest.fixture
def function(superuser: Session) -> str:
    """The definition of a function that the registry's fold calls."""
    ((text,),) = superuser.query(DEFINITION)
    return str(text)


@pytest.mark.parametrize("model", READ_MODELS, ids=lambda model: model.name)
def test_a_model_names_the_functions_that_its_statements_call(model: ReadModel) -> None:
    """A changed function would be a changed fold that nobody has seen."""
    called = set(re.findall(r"\bpublic\.(\w+)\(", model.apply_text))
    assert called <= model.functions.keys()


def test_the_functions_of_the_newest_migration_are_those_that_are_locked(superuser: Session) -> None:
    """A migration that changes one has to raise the version of each read model that calls it."""
    for model in READ_MODELS:
        assert function_hashes(superuser, model.functions) == dict(model.functions), model.name


def test_comments_and_white_space_of_a_function_do_not_count(superuser: Session, function: str) -> None:
    """As in the files of a read model; any other change does."""
    before = function_hashes(superuser, REGISTRY.functions)
    superuser.script(function.replace("BEGIN\n", "BEGIN\n\n    -- A comment.\n", 1))
    assert function_hashes(superuser, REGISTRY.functions) == before
    superuser.script(function.replace("'stub'", "'unknown'", 1))
    changed = {
        name for name, sha256 in function_hashes(superuser, REGISTRY.functions).items() if before[name] != sha256
    }
    assert changed == {"fold_into_entity"}


def test_a_changed_function_under_an_old_version_stops_its_model_and_no_other(
    database: Database, superuser: Session, function: str
) -> None:
    """By name, before it folds anything; with the function that it was locked with it goes on where it was."""
    lagging = LaggingModels(database.writer_url, MODELS)
    projector = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, lagging=lagging)
    with contextlib.closing(projector):
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([onboarded(1)], token=token))
        superuser.script(changed(function))
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([onboarded(2)], token=token, start=1))

        ((name, reason),) = superuser.query(STOPS)
        assert name == REGISTRY.name
        assert "FunctionsChanged" in reason
        assert "fold_into_entity" in reason
        assert [each for _, each in superuser.query(NAMES)] == ["agent 1"]
        assert superuser.query("SELECT count(*) AS n FROM agents_v1.agents") == [(2,)]

        superuser.script(function)
        lagging.forget(TOPIC, 0)
        projector.acquire(WATERMARKS)
        while lagging.feed_next() == 0.0:
            pass
        projector.idle()
        assert superuser.query(STOPS) == []
        assert [each for _, each in superuser.query(NAMES)] == ["agent 1", "agent 2"]
    lagging.close()


def test_a_function_that_changes_while_its_model_follows_stops_it(
    database: Database, superuser: Session, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner looks every two seconds, and acquires the partition again."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    lagging = LaggingModels(database.writer_url, MODELS)
    projector = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, lagging=lagging)
    with contextlib.closing(projector):
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([onboarded(1)], token=token))
        superuser.script(changed(function))
        with pytest.raises(ReadModelsChanged, match="fold_into_entity"):
            projector.idle()
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([onboarded(2)], token=token, start=1))
        assert [name for name, _ in superuser.query(STOPS)] == [REGISTRY.name]
        assert [each for _, each in superuser.query(NAMES)] == ["agent 1"]
        assert superuser.query("SELECT count(*) AS n FROM agents_v1.agents") == [(2,)]
    lagging.close()


def test_a_function_that_changes_while_its_model_lags_stops_it(
    database: Database, superuser: Session, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its next slice; with the function that it was locked with it goes on there."""
    for module, name in (
        (fold, "FOLD_RECORDS"),
        (following_models, "REJOIN_OFFSETS"),
        (lagging_models, "NEAR_OFFSETS"),
    ):
        monkeypatch.setattr(module, name, 3)
    monkeypatch.setattr(lagging_models, "STOPPED_DELAYS_SECONDS", (0.0,))
    superuser.script("UPDATE read_model_builds SET paused = true WHERE projection = 'registry'")
    lagging = LaggingModels(database.writer_url, MODELS)
    projector = PartitionProjector(database.writer_url, TOPIC, 0, MODELS, lagging=lagging)
    with contextlib.closing(projector):
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of([onboarded(number) for number in range(12)], token=token))
        superuser.script("UPDATE read_model_builds SET paused = false")
        projector.acquire(WATERMARKS)
        lagging.feed_next()
        assert len(superuser.query(NAMES)) == 3
        superuser.script(changed(function))
        lagging.feed_next()
        ((name, reason),) = superuser.query(STOPS)
        assert (name, "fold_into_entity" in reason, len(superuser.query(NAMES))) == (REGISTRY.name, True, 3)
        superuser.script(function)
        while lagging.feed_next() == 0.0:
            pass
        projector.idle()
        assert superuser.query(STOPS) == []
        assert sorted(each for _, each in superuser.query(NAMES)) == sorted(f"agent {number}" for number in range(12))
    lagging.close()


def test_an_upgrade_refuses_a_changed_function(database: Database, superuser: Session, function: str) -> None:
    """And a build that is kept has the functions that are locked with its version."""
    (kept,) = (each for each in load_builds(superuser, MODELS) if each.name == REGISTRY.name)
    assert kept.functions == REGISTRY.functions
    superuser.script(function.replace("'stub'", "'unknown'", 1))
    with pytest.raises(FunctionsChanged, match="fold_into_entity"):
        install(database.owner_url, MODELS)
    superuser.script(function)
    install(database.owner_url, MODELS)
