"""Records that were read begin their deliveries once, and what is read again is known."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from deliveries.deliverer import partition_intake
from deliveries.deliverer.attempt_records import Postponed
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.partition_intake import LoadedRecords, PartitionIntake
from deliveries.deliverer.source_marks import SourceMarks
from deliveries.delivery_fence import TopicOffsets
from deliveries.hops import first_hop
from schemas.batch_decoder import RejectedValue
from schemas.delivery_records import DELIVERIES_TOPIC
from schemas.errors import UnknownSchema
from streams.errors import LogTruncated, SchemaNewer
from streams.log_end import record_digest, record_of
from streams.topics import RETRY_TOPICS
from tests.support.partition_parts import PartitionParts, batch_at, read_delivery

RETRY = RETRY_TOPICS[0]


def intake_of(parts: PartitionParts, **topics: TopicOffsets) -> PartitionIntake:
    intake = PartitionIntake(parts.process, 0, SourceMarks({}), parts.deliveries, parts.log)
    intake.open_topic(DELIVERIES_TOPIC, topics.get("deliveries", TopicOffsets(0)))
    intake.open_topic(RETRY, topics.get("retry", TopicOffsets(0)))
    return intake


def take(intake: PartitionIntake, *deliveries: Delivery, rejected: tuple[RejectedValue, ...] = ()) -> None:
    """Take deliveries of one topic as one batch, which begins where the topic is read."""
    topic = deliveries[0].topic if deliveries else DELIVERIES_TOPIC
    offsets = sorted({each.offset for each in deliveries} | {each.row for each in rejected})
    batch = batch_at(*offsets, start=intake.trackers[topic].position)
    intake.take(topic, batch, LoadedRecords(deliveries, rejected))


def done_to(intake: PartitionIntake, topic: str = DELIVERIES_TOPIC) -> int:
    return intake.trackers[topic].next_offset


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> PartitionParts:
    return PartitionParts(monkeypatch, unfinished_max=2)


def test_new_deliveries_begin_in_the_order_of_their_records(parts: PartitionParts) -> None:
    """However they were decoded; a round is told of work."""
    intake = intake_of(parts)
    take(intake, *(read_delivery(offset) for offset in (2, 0, 1)))
    assert parts.begun == [0, 1, 2]
    assert parts.deliveries.work.is_set()
    assert (done_to(intake), intake.trackers[DELIVERIES_TOPIC].unfinished) == (0, 3)


def test_a_copy_is_done_at_once(parts: PartitionParts) -> None:
    """One that came before, under way or not."""
    intake = intake_of(parts)
    take(intake, read_delivery(0), read_delivery(1))
    take(intake, read_delivery(2, source_offset=0, delivery_id=read_delivery(0).delivery_id), read_delivery(3))
    assert parts.begun == [0, 1, 3]
    intake.finish(read_delivery(0))
    intake.finish(read_delivery(1))
    assert done_to(intake) == 3


def test_what_an_owner_before_told_from_copies_is_not_judged_again(parts: PartitionParts) -> None:
    """Its mark is at or behind it by then; only one that is under way is a copy."""
    intake = intake_of(parts, deliveries=TopicOffsets(0, (), 3))
    assert intake.marks.pass_new(read_delivery(4))
    take(intake, read_delivery(0), read_delivery(1), read_delivery(2, delivery_id=read_delivery(0).delivery_id))
    take(intake, read_delivery(3))
    assert parts.begun == [0, 1]
    intake.finish(read_delivery(0))
    intake.finish(read_delivery(1))
    assert done_to(intake) == 4


def test_a_record_that_was_done_before_is_not_met_again(parts: PartitionParts) -> None:
    """Neither a delivery, nor one that can't be read."""
    intake = intake_of(parts, deliveries=TopicOffsets(0, ((1, 3),), 3))
    with capture_logs() as lines:
        take(intake, read_delivery(0), read_delivery(1), rejected=(RejectedValue(2, "no delivery"),))
    assert (parts.begun, lines) == ([0], [])
    intake.finish(read_delivery(0))
    assert done_to(intake) == 3


def test_what_can_not_be_read_is_done(parts: PartitionParts) -> None:
    """It is told in the log alone."""
    intake = intake_of(parts)
    with capture_logs() as lines:
        take(intake, rejected=(RejectedValue(0, "no delivery"),))
    assert [(each["event"], each["offset"], each["why"]) for each in lines] == [
        ("delivery.unreadable", 0, "no delivery")
    ]
    assert done_to(intake) == 1
    assert parts.begun == []


def test_a_redriven_delivery_is_compared_with_the_rows_first(parts: PartitionParts) -> None:
    """It begins where none waits; one that waits or is under way goes on as it is."""
    intake = intake_of(parts)
    redriven = [read_delivery(offset, stream="redrive", source_offset=offset, hop=first_hop(1)) for offset in range(3)]
    take(intake, *redriven)
    assert parts.begun == []
    unverified = intake.take_unverified()
    assert (list(unverified), intake.take_unverified()) == (redriven, [])
    parts.deliveries.active.add(redriven[2].delivery_id)
    intake.verify(unverified, {redriven[1].delivery_id: first_hop(1)})
    assert parts.begun == [0]
    intake.finish(redriven[0])
    assert done_to(intake) == 3


def test_a_redriven_delivery_that_is_ending_is_asked_about_again(parts: PartitionParts) -> None:
    """Until it is written down whether it waits; one of a retry topic is a copy of it, and done."""
    intake = intake_of(parts)
    parts.end(read_delivery(0), Postponed(None, "a test"))
    redriven = read_delivery(1, delivery_id=read_delivery(0).delivery_id, stream="redrive", hop=first_hop(1))
    take(intake, redriven)
    intake.verify(intake.take_unverified(), {})
    assert parts.begun == []
    assert list(intake.take_unverified()) == [redriven]
    retried = read_delivery(0, topic=RETRY, hop=1)
    take(intake, retried)
    intake.verify(intake.take_unverified(), {})
    assert done_to(intake, RETRY) == 1


def test_a_record_of_a_retry_topic_waits_where_it_is_the_rows_own(parts: PartitionParts) -> None:
    """With another hop, or none, it is a copy; so it is while the delivery is under way."""
    intake = intake_of(parts)
    waiting = [read_delivery(offset, topic=RETRY, hop=2) for offset in range(4)]
    take(intake, *waiting)
    parts.deliveries.active.add(waiting[3].delivery_id)
    hops = {waiting[0].delivery_id: 2, waiting[1].delivery_id: 3, waiting[3].delivery_id: 2}
    intake.verify(intake.take_unverified(), hops)
    assert (parts.begun, parts.deliveries.waiting) == ([], 1)
    intake.finish(waiting[0])
    assert done_to(intake, RETRY) == 4


async def test_a_topic_with_too_much_unfinished_waits_for_room(parts: PartitionParts) -> None:
    """Until there may be some; then it looks again."""
    intake = intake_of(parts)
    tracker = intake.trackers[DELIVERIES_TOPIC]
    take(intake, read_delivery(0))
    assert await intake.wait_for_room(tracker)
    take(intake, read_delivery(1))
    intake.look_for_room()
    waiting = asyncio.create_task(intake.wait_for_room(tracker))
    await asyncio.sleep(0)
    assert not waiting.done(), "what was told before is forgotten"
    intake.look_for_room()
    assert await waiting is False
    intake.finish(read_delivery(0))
    assert await intake.wait_for_room(tracker)


def test_changed_offsets_are_told_once(parts: PartitionParts) -> None:
    """Of the topics that were read or done further, and where a topic holds nothing."""
    intake = intake_of(parts)
    assert intake.take_changed() == {}
    take(intake, read_delivery(0))
    assert {topic: each.next_offset for topic, each in intake.take_changed().items()} == {DELIVERIES_TOPIC: 0}
    assert intake.take_changed() == {}
    intake.finish(read_delivery(0))
    assert intake.take_changed()[DELIVERIES_TOPIC].next_offset == 1
    intake.pass_gap(RETRY, 0)
    assert intake.take_changed() == {}
    intake.pass_gap(RETRY, 5)
    assert intake.take_changed()[RETRY].next_offset == 5
    intake.pass_gap(RETRY, 4)
    assert intake.trackers[RETRY].position == 5


@pytest.mark.parametrize("known", [5, 6, 7])
def test_another_record_than_was_read_before_is_found(parts: PartitionParts, known: int) -> None:
    """Wherever in the batch it is; nothing of the batch begins. The same one passes."""
    batch = batch_at(5, 6, 7)
    row = batch.offsets.index(known)
    same, other = record_digest(record_of(batch, row)), record_digest(record_of(batch_at(known, values=[b"x"]), 0))
    loaded = LoadedRecords([read_delivery(5)], [])
    truncated = intake_of(parts, deliveries=TopicOffsets(5, (), 8, other))
    with pytest.raises(LogTruncated, match=f"offset {known} "):
        truncated.take(DELIVERIES_TOPIC, batch, loaded)
    assert parts.begun == []
    intact = intake_of(parts, deliveries=TopicOffsets(5, (), 8, same))
    intact.take(DELIVERIES_TOPIC, batch, loaded)
    assert parts.begun == [5]
    assert intact.trackers[DELIVERIES_TOPIC].last == record_digest(record_of(batch, 2))


def test_a_record_before_or_between_those_of_a_batch_is_not_looked_for(parts: PartitionParts) -> None:
    """The last one that was read may be in another batch, or was compacted away."""
    for known, offsets in ((4, (5, 7)), (6, (5, 7)), (9, (5, 7))):
        last = record_digest(record_of(batch_at(known), 0))
        intake = intake_of(parts, deliveries=TopicOffsets(5, (), 10, last))
        intake.take(DELIVERIES_TOPIC, batch_at(*offsets), LoadedRecords([], []))
        assert intake.trackers[DELIVERIES_TOPIC].last == max(
            (last, record_digest(record_of(batch_at(*offsets), 1))), key=lambda each: each.offset
        )


async def test_endpoints_are_loaded_with_a_batch(parts: PartitionParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once; a record of a later release stops the topic at its offset."""
    intake = intake_of(parts)
    read = [read_delivery(3, endpoint=2), read_delivery(4, endpoint=2), read_delivery(5, endpoint=1)]
    monkeypatch.setattr(partition_intake, "read_deliveries", lambda *_: (read, []))
    assert (await intake.load(DELIVERIES_TOPIC, batch_at(3, 4, 5))).deliveries == read
    assert parts.endpoints.loaded == [{each.endpoint_id for each in read}]

    def raise_unknown(*_: Any) -> None:
        raise UnknownSchema(99, row=1)

    monkeypatch.setattr(partition_intake, "read_deliveries", raise_unknown)
    with pytest.raises(SchemaNewer, match=r"\b4\b"):
        await intake.load(DELIVERIES_TOPIC, batch_at(3, 4, 5))
