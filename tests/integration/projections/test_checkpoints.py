"""Fences: each consumer of a partition has its own, and a checkpoint moves at the same cost under a long snapshot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from database.errors import DatabaseUnreachable
from projections import checkpoints
from projections.checkpoints import PROJECTOR, Fence
from projections.engine import PartitionProjector
from projections.session import Session
from streams.errors import OwnershipLost, PartitionCountChanged, TopicRecreated
from tests.conftest import Database
from tests.support.batches import PARTITIONS, TOPIC, TOPIC_ID, WATERMARKS, batch_of
from tests.support.load import some_events
from tests.support.waiting import wait_until

DELIVERIES = "deliveries"
OFFSETS = "SELECT consumer, next_offset FROM checkpoints WHERE partition = 0 ORDER BY 1"
TOKENS = "SELECT token FROM partition_owners WHERE consumer = $1 AND partition = 0"

OpenSession = Callable[[], Session]


@pytest.fixture
def open_session(database: Database) -> Iterator[OpenSession]:
    """Opens sessions of a worker."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(contextlib.closing(Session(database.writer_url)))


def acquire(session: Session, consumer: str = DELIVERIES, partitions: int = PARTITIONS) -> Fence:
    return checkpoints.acquire(session, consumer, TOPIC, 0, partitions, TOPIC_ID)


def advance(session: Session, token: int, start: int, stop: int, consumer: str = DELIVERIES) -> None:
    """Move the consumer's checkpoint, as a transaction of its owner does."""
    lock = checkpoints.lock_statement(consumer, TOPIC, 0, token, start)
    session.script("BEGIN", lock, checkpoints.advance_statement(consumer, TOPIC, 0, stop), "COMMIT")


def test_a_topic_whose_id_is_not_known_is_no_other_topic(open_session: OpenSession) -> None:
    """Brokers that tell no ids: what is recorded of it stays, or is filled in by one that does."""
    ids = (None, TOPIC_ID, None, TOPIC_ID)
    recorded = []
    for topic_id in ids:
        session = open_session()
        checkpoints.acquire(session, DELIVERIES, TOPIC, 0, PARTITIONS, topic_id)
        recorded.append(checkpoints.recorded_topic_id(session, DELIVERIES, TOPIC, 0))
    assert recorded == [None, TOPIC_ID, TOPIC_ID, TOPIC_ID]


def test_two_consumers_of_a_partition_both_go_on(
    projector: PartitionProjector, superuser: Session, open_session: OpenSession
) -> None:
    """The second one ends neither the session nor the fence of the projector, which ends none of its in turn."""
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(5), token=token))

    dispatcher = open_session()
    fence = acquire(dispatcher)
    assert (fence.next_offset, fence.caught_up) == (0, frozenset())
    advance(dispatcher, fence.token, 0, 3)
    projector.project(batch_of(some_events(5, seed=2), token=token, start=5))
    advance(dispatcher, fence.token, 3, 4)
    assert superuser.query(OFFSETS) == [(DELIVERIES, 4), (PROJECTOR, 10)]

    token = projector.acquire(WATERMARKS).token
    advance(dispatcher, fence.token, 4, 10)
    projector.project(batch_of(some_events(5, seed=3), token=token, start=10))
    assert superuser.query(OFFSETS) == [(DELIVERIES, 10), (PROJECTOR, 15)]


def test_a_consumers_frozen_owner_is_ended(projector: PartitionProjector, open_session: OpenSession) -> None:
    """Its successor in the same consumer has its lock at once; the projector that holds its own is left alone."""
    projector.acquire(WATERMARKS)
    frozen, held = open_session(), projector._require_session()
    token = acquire(frozen).token
    held.begin()
    checkpoints.lock_fence(held, PROJECTOR, TOPIC, 0, projector._require_fence().token)
    frozen.begin()
    checkpoints.lock_fence(frozen, DELIVERIES, TOPIC, 0, token)

    successor = open_session()
    assert acquire(successor).token == token + 1

    with pytest.raises(DatabaseUnreachable):
        frozen.query("SELECT 1 AS one")
    assert held.query("SELECT 1 AS one") == [(1,)]
    advance(successor, token + 1, 0, 1)


def test_a_token_counts_for_its_consumer_alone(superuser: Session, open_session: OpenSession) -> None:
    """Another consumer's is refused in a transaction and before it, though the number is higher."""
    first, second = open_session(), open_session()
    for _ in range(3):
        fence = acquire(first)
    other = acquire(second, "rebuild").token
    assert superuser.query(TOKENS, (DELIVERIES,)) == [(fence.token,)]
    assert other < fence.token
    with pytest.raises(OwnershipLost, match="not current for the consumer rebuild"):
        advance(first, fence.token, 0, 1, "rebuild")
    first.rollback()
    first.begin()
    with pytest.raises(OwnershipLost, match="not current"):
        checkpoints.lock_fence(first, "rebuild", TOPIC, 0, fence.token)


def test_a_stop_is_noted_for_its_consumer_alone(superuser: Session, open_session: OpenSession) -> None:
    """The token is one of its consumer too."""
    session = open_session()
    first, second = acquire(session), acquire(session, "rebuild")
    assert first.token == second.token
    checkpoints.note_stop(session, DELIVERIES, TOPIC, 0, first.token, "a reason")
    reasons = superuser.query("SELECT consumer, stop_reason FROM partition_owners WHERE partition = 0 ORDER BY 1")
    assert reasons == [(DELIVERIES, "a reason"), ("rebuild", None)]


def test_each_consumer_is_held_to_the_count_of_partitions(open_session: OpenSession) -> None:
    """The rows of another consumer are not counted among its own."""
    session = open_session()
    acquire(session)
    acquire(session, "rebuild")
    acquire(session)
    with pytest.raises(PartitionCountChanged):
        acquire(session, "rebuild", PARTITIONS + 1)


def test_a_checkpoint_that_is_gone_fences_its_owner_off(superuser: Session, open_session: OpenSession) -> None:
    """Nothing is written where no checkpoint could move, or where it stands beyond."""
    session = open_session()
    token = acquire(session).token
    superuser.script("DELETE FROM checkpoints")
    with pytest.raises(OwnershipLost, match="no checkpoint"):
        session.script(checkpoints.advance_statement(DELIVERIES, TOPIC, 0, 1))
    session.begin()
    with pytest.raises(OwnershipLost, match="has no checkpoint of the consumer deliveries"):
        checkpoints.lock_fence(session, DELIVERIES, TOPIC, 0, token)
    session.rollback()
    assert acquire(session).next_offset == 0
    session.script(checkpoints.advance_statement(DELIVERIES, TOPIC, 0, 5))
    with pytest.raises(OwnershipLost, match="could move to 4"):
        session.script(checkpoints.advance_statement(DELIVERIES, TOPIC, 0, 4))


GROW = """
DO $$ BEGIN FOR n IN 1..2000 LOOP PERFORM advance_checkpoint('deliveries', 'genesis.events', 0, n); END LOOP; END $$
"""
SCANS = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'checkpoints'"
PAGES = "SELECT pg_relation_size('checkpoints') / 8192 AS pages"


def test_versions_that_a_snapshot_keeps_cost_a_batch_nothing(superuser: Session, open_session: OpenSession) -> None:
    """A table that has grown is entered where the owner wrote last, with no index and no scan."""
    session = open_session()
    token = acquire(session).token
    session.script(GROW)  # a transaction can't remove its own versions, as little as those that a snapshot needs
    ((pages,),) = superuser.query(PAGES)
    assert pages > 16
    session.begin()
    scans = session.query(SCANS)
    session.script(checkpoints.lock_statement(DELIVERIES, TOPIC, 0, token, 2000))
    session.script(checkpoints.advance_statement(DELIVERIES, TOPIC, 0, 2001))
    assert session.query(SCANS) == scans
    session.commit()
    assert superuser.query(OFFSETS) == [(DELIVERIES, 2001)]


def test_versions_that_nobody_needs_are_removed(superuser: Session, open_session: OpenSession) -> None:
    """A table of a few pages is read by its key and never as a whole, and Postgres tidies up as it goes."""
    session = open_session()
    token, next_offset = 0, 0

    def stays_small() -> bool:
        """Whether a new table has as many pages after 1,500 versions as after 1,000: snapshots keep them."""
        nonlocal token, next_offset
        superuser.script("TRUNCATE checkpoints")
        token, next_offset = acquire(session).token, 0
        superuser.script("ANALYZE checkpoints")  # from then on it looks cheaper to read it as a whole
        pages = []
        for _ in range(3):
            for _ in range(500):
                advance(session, token, next_offset, next_offset + 1)
                next_offset += 1
            pages.append(superuser.query(PAGES)[0][0])
        return bool(pages[-1] == pages[-2])

    wait_until(stays_small, "versions that nobody needs are removed")
    session.begin()
    ((whole, by_key),) = session.query(SCANS)
    session.script(checkpoints.lock_statement(DELIVERIES, TOPIC, 0, token, next_offset))
    session.script(checkpoints.advance_statement(DELIVERIES, TOPIC, 0, next_offset + 1))
    assert session.query(SCANS) == [(whole, by_key + 2)]
    session.commit()


@pytest.mark.parametrize("known", ["(99,1)", "(20,0)", ""])
def test_a_version_that_is_gone_is_looked_for_by_its_key(
    superuser: Session, open_session: OpenSession, known: str
) -> None:
    """Wherever the session believes its row to be, it moves its own."""
    session = open_session()
    token = acquire(session).token
    acquire(session, "rebuild")
    session.script(GROW)
    session.script(f"SET plant.checkpoint = '{known}'")
    advance(session, token, 2000, 2001)
    assert superuser.query(OFFSETS) == [(DELIVERIES, 2001), ("rebuild", 0)]


def test_the_version_of_another_row_is_not_moved(superuser: Session, open_session: OpenSession) -> None:
    """Two consumers in one session go on, each from its own row."""
    session = open_session()
    first, second = acquire(session).token, acquire(session, "rebuild").token
    session.script(GROW, GROW.replace("deliveries", "rebuild"))
    advance(session, first, 2000, 2001)
    advance(session, second, 2000, 2002, "rebuild")
    advance(session, first, 2001, 2003)
    assert superuser.query(OFFSETS) == [(DELIVERIES, 2003), ("rebuild", 2002)]


def test_what_is_rolled_back_is_not_remembered(superuser: Session, open_session: OpenSession) -> None:
    """After it the owner finds the version that is in force."""
    session = open_session()
    token = acquire(session).token
    session.script(GROW)
    session.script(
        "BEGIN",
        checkpoints.lock_statement(DELIVERIES, TOPIC, 0, token, 2000),
        checkpoints.advance_statement(DELIVERIES, TOPIC, 0, 2500),
        "ROLLBACK",
    )
    advance(session, token, 2000, 2001)
    assert superuser.query(OFFSETS) == [(DELIVERIES, 2001)]


def test_a_partition_that_the_topic_lacks_is_not_acquired(open_session: OpenSession, superuser: Session) -> None:
    """Though the topic has as many partitions as owners' rows; nothing is changed."""
    session = open_session()
    acquire(session)
    with pytest.raises(PartitionCountChanged):
        checkpoints.acquire(session, DELIVERIES, TOPIC, PARTITIONS, PARTITIONS, TOPIC_ID)
    assert superuser.query(TOKENS, (DELIVERIES,)) == [(2,)]


def test_the_first_known_id_of_a_topic_stays(open_session: OpenSession) -> None:
    """A broker that names none later changes nothing, and one that names another is refused."""
    session = open_session()
    for topic_id in (None, TOPIC_ID, None):
        checkpoints.acquire(session, DELIVERIES, TOPIC, 0, PARTITIONS, topic_id)
    with pytest.raises(TopicRecreated):
        checkpoints.acquire(session, DELIVERIES, TOPIC, 0, PARTITIONS, UUID(int=1))


def test_why_a_partition_is_stopped_is_its_last_owners_to_say(open_session: OpenSession, superuser: Session) -> None:
    """Acquiring it clears the reason, and a former owner's comes too late."""
    session, reason = open_session(), "SELECT stop_reason FROM partition_owners WHERE partition = 0"
    token = acquire(session).token
    checkpoints.note_stop(session, DELIVERIES, TOPIC, 0, token, "a reason")
    assert superuser.query(reason) == [("a reason",)]
    acquire(session)
    checkpoints.note_stop(session, DELIVERIES, TOPIC, 0, token, "too late")
    assert superuser.query(reason) == [(None,)]
    checkpoints.note_stop(session, DELIVERIES, TOPIC, 0, None, "not acquired")
    assert superuser.query(reason) == [("not acquired",)]
