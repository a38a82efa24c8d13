"""A standby that takes over without the last transactions, in the middle of a range of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from database import migrate
from database.errors import DatabaseUnreachable
from devstack import sql
from devstack.stack import Stack
from projections.engine import PartitionProjector
from projections.install import install
from projections.read_model import READ_MODELS
from projections.session import Session
from schemas.events import Event
from tests.support import log_tables
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.standby import Standby, standby
from tests.support.waiting import wait_until

RANGE = 64
LOG = 'SELECT "offset", disposition::text AS name, event_id::text AS id FROM log_records ORDER BY "offset"'
RANGES = "SELECT first_offset, closed_at IS NOT NULL AS closed FROM log_ranges ORDER BY first_offset"


@pytest.fixture
def primary(private_stack: Stack) -> Iterator[Stack]:
    """A stack with a migrated database whose log is empty and has small ranges; its database runs again afterwards."""
    owner_url = private_stack.environ["PLANT_DATABASE_OWNER_URL"]
    migrate.downgrade(owner_url, "base")
    migrate.upgrade(owner_url)
    install(owner_url)
    log_tables.set_range_offsets(owner_url, RANGE)
    yield private_stack
    private_stack.start_postgres()


@pytest.fixture
def follower(primary: Stack) -> Iterator[Standby]:
    """Its standby."""
    with standby(primary) as made:
        yield made


@pytest.mark.parametrize("same_owner", [True, False], ids=["the owner of before", "another owner"])
def test_a_standby_takes_over_in_the_middle_of_a_range(primary: Stack, follower: Standby, same_owner: bool) -> None:
    """It lacks the last transactions, with ranges that were closed: they are applied again, each event once.

    The owner of before knows ids and ranges that the log has lost.
    """
    events = some_events(400)
    url, superuser = (primary.environ[f"PLANT_DATABASE_{role}_URL"] for role in ("WRITER", "SUPERUSER"))
    projector = PartitionProjector(url, TOPIC, 0, READ_MODELS)
    project(projector, events[:150], 0)
    wait_until(lambda: len(query(follower.address(superuser), LOG)) == 150, "the standby has the first transactions")
    follower.kill()
    project(projector, events[150:300], 150)
    assert len(query(superuser, RANGES)) == 5
    primary.kill_postgres()
    with pytest.raises(DatabaseUnreachable):
        projector.acquire(WATERMARKS)

    follower.start()
    after = follower.address(superuser)
    sql.execute(after, ["SELECT pg_promote()"])
    wait_until(
        lambda: query(after, "SELECT pg_is_in_recovery() AS standby") == [(False,)], "the standby has taken over"
    )
    assert len(query(after, LOG)) == 150
    if not same_owner:
        projector.forget()
        projector = PartitionProjector(url, TOPIC, 0, READ_MODELS)
    projector._url = follower.address(url)
    project(projector, events[150:], 150)
    project(projector, events, 400)

    applied = [(offset, "applied", str(event.event_id)) for offset, event in enumerate(events)]
    repeats = [(offset, "repeat", str(event.event_id)) for offset, event in enumerate(events, 400)]
    assert query(after, LOG) == applied + repeats
    assert [closed for _, closed in query(after, RANGES)] == [True] * 12 + [False]
    projector.forget()


def project(projector: PartitionProjector, events: Sequence[Event], start: int) -> None:
    """Acquire the partition, project events in batches, and read and close what is left."""
    token = projector.acquire(WATERMARKS).token
    for first in range(0, len(events), 50):
        projector.project(batch_of(events[first : first + 50], token=token, start=start + first))
    for _ in range(50):
        projector.idle()


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    session = Session(url)
    try:
        return session.query(statement)
    finally:
        session.close()
