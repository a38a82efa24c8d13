"""Migration 030: builds whose SQL is several statements are none for workers of before."""

from __future__ import annotations

import contextlib

import pytest

from database import migrate
from projections import checkpoints, stored_builds
from projections.checkpoints import PROJECTOR
from projections.install import install
from projections.session import Session, WorkerOutdated
from tests.conftest import Database
from tests.support.batches import TOPIC


def test_a_worker_that_knows_builds_of_one_statement_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, at acquiring a partition."""
    monkeypatch.setattr(checkpoints, "KNOWN_REVISION", 29)
    with contextlib.closing(Session(database.writer_url)) as writer, pytest.raises(WorkerOutdated):
        checkpoints.acquire(writer, PROJECTOR, TOPIC, 0, 4, None)


def test_on_the_way_back_such_builds_are_paused(database: Database) -> None:
    """Workers of before feed all others."""
    install(database.owner_url)
    migrate.downgrade(database.owner_url, "029")
    with contextlib.closing(Session(database.writer_url)) as writer:
        fed = stored_builds.load_builds(writer, [])
        assert {len(model.folds()) for model in fed} == {1}
        assert {"agents", "skills", "ratings", "activity"} <= {model.name for model in fed}
        assert "marketplace" not in {model.name for model in fed}
