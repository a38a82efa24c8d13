"""Migration 030: builds whose SQL is several statements are none for workers of before."""

from __future__ import annotations

import contextlib

import pytest

from database import migrate
from projections import checkpoints
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
        # As workers of before read them: today's look at columns that came later.
        fed = dict(writer.query("SELECT projection, apply_sql FROM read_model_builds WHERE NOT paused"))
        assert {"agents", "skills", "ratings", "activity"} <= fed.keys()
        assert "marketplace" not in fed
        assert {apply_sql.rstrip().rstrip(";").count(";") for apply_sql in fed.values()} == {0}
