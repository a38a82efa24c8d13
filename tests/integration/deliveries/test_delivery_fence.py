"""Who may send the deliveries of a partition, and how far its topics are done, as plant_deliverer writes it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from uuid import uuid4

import pytest

from database.errors import DatabaseUnreachable
from deliveries.delivery_fence import DeliveryFence, TopicOffsets
from projections.session import ProjectionBroken, Session
from schemas.delivery_records import DELIVERIES_TOPIC
from streams.errors import LogRefused, OwnershipLost, PartitionCountChanged, TopicRecreated
from streams.kafka.record_columns import RecordColumns
from streams.log_end import LogEnd, LoggedRecord, record_digest
from streams.watermarks import Leadership, Watermarks
from tests.conftest import Database

WATERMARKS = Watermarks(0, 0, 4, Leadership(uuid4(), 0))


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with contextlib.closing(Session(database.deliverer_url)) as session:
        yield session


def test_a_partition_has_one_owner(database: Database, session: Session) -> None:
    """The next owner ends the session of the one before, whose token is not current any more."""
    first = DeliveryFence(session, "deliverer", 2)
    session.script(first.lock_statement)
    with contextlib.closing(Session(database.deliverer_url)) as other:
        second = DeliveryFence(other, "deliverer", 2)
        assert second.token == first.token + 1
        with pytest.raises(DatabaseUnreachable):
            session.query("SELECT 1 AS one")
        with pytest.raises(OwnershipLost):
            other.script(first.lock_statement)


def test_owners_of_other_partitions_and_consumers_are_left_alone(database: Database, session: Session) -> None:
    """Each has a token of its own."""
    DeliveryFence(session, "deliverer", 2)
    with contextlib.closing(Session(database.deliverer_url)) as other:
        assert DeliveryFence(other, "deliverer", 3).token == 1
        assert DeliveryFence(other, "recorder", 2).token == 1
    assert session.query("SELECT 1 AS one") == [(1,)]


def test_what_is_done_is_kept(session: Session) -> None:
    """Ranges past the next offset come back as they were written; other topics and partitions have their own."""
    fence = DeliveryFence(session, "deliverer", 1)
    assert fence.open_topic(DELIVERIES_TOPIC, WATERMARKS) == TopicOffsets(0)
    offsets = TopicOffsets(7, ((9, 11), (20, 21)), 30)
    session.script("BEGIN", fence.lock_statement, fence.advance_statement(DELIVERIES_TOPIC, offsets), "COMMIT")
    assert fence.open_topic(DELIVERIES_TOPIC, WATERMARKS) == offsets
    assert fence.open_topic("other", WATERMARKS) == TopicOffsets(0)
    assert DeliveryFence(session, "recorder", 1).open_topic(DELIVERIES_TOPIC, WATERMARKS) == TopicOffsets(0)
    assert DeliveryFence(session, "deliverer", 2).open_topic(DELIVERIES_TOPIC, WATERMARKS) == TopicOffsets(0)


def test_another_topic_of_the_name_is_refused(session: Session) -> None:
    """So is one with another number of partitions: keys would be elsewhere."""
    fence = DeliveryFence(session, "deliverer", 1)
    fence.open_topic(DELIVERIES_TOPIC, WATERMARKS)
    with pytest.raises(TopicRecreated):
        fence.open_topic(DELIVERIES_TOPIC, WATERMARKS._replace(leadership=Leadership(uuid4(), 0)))
    with pytest.raises(PartitionCountChanged):
        fence.open_topic(DELIVERIES_TOPIC, WATERMARKS._replace(partition_count=8))


@pytest.mark.parametrize("table", ["partition_owners", "checkpoints", "log_records", "entities", "outbox"])
def test_a_deliverer_has_no_right_on_log_and_entities(session: Session, table: str) -> None:
    """It handles the answers of strangers."""
    for statement in (f"SELECT count(*) FROM {table}", f"DELETE FROM {table}"):
        with pytest.raises((LogRefused, ProjectionBroken)):
            session.execute(statement)


def test_a_topic_that_lost_its_tail_and_grew_again_is_known(session: Session) -> None:
    """The last record that was read is kept, and is what Kafka has to hold below the checkpoint."""
    fence = DeliveryFence(session, "recorder", 1)
    assert fence.open_topic(DELIVERIES_TOPIC, WATERMARKS).log_end == LogEnd(None, 0, compared=False)
    read = LoggedRecord(6, 1_000, b"key", b"value", bytes(4))
    for offsets in (TopicOffsets(7, last=record_digest(read)), TopicOffsets(7)):
        session.script("BEGIN", fence.lock_statement, fence.advance_statement(DELIVERIES_TOPIC, offsets), "COMMIT")
    end = fence.open_topic(DELIVERIES_TOPIC, WATERMARKS).log_end
    assert (end.read_from(0), end.compared) == (6, True)
    for record, differs in ((read, False), (dataclasses.replace(read, value=b"other"), True)):
        columns = RecordColumns([6, 7], [record.timestamp_ms, 1], [record.key, None], [record.value, None],
                                [record.headers, bytes(4)])  # fmt: skip
        assert (end.difference(columns, 6, 8) is not None) == differs
    unfinished = TopicOffsets(5, ((6, 7),), 7, record_digest(read))
    session.script("BEGIN", fence.lock_statement, fence.advance_statement(DELIVERIES_TOPIC, unfinished), "COMMIT")
    assert fence.open_topic(DELIVERIES_TOPIC, WATERMARKS).log_end == LogEnd(None, 5, compared=False)
