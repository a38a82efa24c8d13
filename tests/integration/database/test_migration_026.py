"""Migration 026: workers from before parking are refused by name, at a batch and at acquiring a partition."""

from __future__ import annotations

import contextlib

import pytest

from database import migrate
from projections import checkpoints
from projections.checkpoints import PROJECTOR
from projections.session import Session, WorkerOutdated
from tests.conftest import Database
from tests.support.batches import TOPIC

ACQUIRE = f"SELECT add_partition_owners('projector', '{TOPIC}', 4, NULL)"
BATCH = f"SELECT lock_partition('projector', '{TOPIC}', 0, 2, 0)"


@pytest.mark.parametrize("statement", [ACQUIRE, BATCH], ids=["acquiring", "a batch"])
def test_a_worker_of_before_is_refused_by_name(database: Database, statement: str) -> None:
    """By the first statement of either: it would apply events of parked entities."""
    with contextlib.closing(Session(database.writer_url)) as writer:
        checkpoints.acquire(writer, PROJECTOR, TOPIC, 0, 4, None)
        with pytest.raises(WorkerOutdated, match="older than the database: stop it, and start one of the version"):
            writer.script(statement)


def test_a_worker_that_knows_less_than_the_database_needs_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a later migration has one number to raise."""
    monkeypatch.setattr(checkpoints, "KNOWN_REVISION", 25)
    with contextlib.closing(Session(database.writer_url)) as writer:
        with pytest.raises(WorkerOutdated):
            checkpoints.acquire(writer, PROJECTOR, TOPIC, 0, 4, None)
        with pytest.raises(WorkerOutdated):
            writer.script(checkpoints.lock_statement(PROJECTOR, TOPIC, 0, 1, 0))


def test_after_a_downgrade_the_worker_of_before_goes_on(database: Database) -> None:
    """With the token and the checkpoint that it finds."""
    with contextlib.closing(Session(database.writer_url)) as writer:
        token = checkpoints.acquire(writer, PROJECTOR, TOPIC, 0, 4, None).token
    migrate.downgrade(database.owner_url, "025")
    with contextlib.closing(Session(database.writer_url)) as writer:
        writer.script(ACQUIRE, f"SELECT lock_partition('projector', '{TOPIC}', 0, {token}, 0)")
