"""Rounds: what ended is published, then written down, and what is due is asked for."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from deliveries.deliverer import partition_rounds
from deliveries.deliverer.attempt_records import Cancelled, Postponed
from deliveries.deliverer.endpoint_streaks import EndpointStreaks, StreakChanges
from deliveries.deliverer.entity_order import held_by
from deliveries.deliverer.partition_intake import LoadedRecords, PartitionIntake
from deliveries.deliverer.partition_rounds import PartitionRounds
from deliveries.deliverer.recorded_attempts import AttemptOf
from deliveries.deliverer.round_writer import RoundAnswer, RoundWriter
from deliveries.deliverer.source_marks import SourceMarks
from deliveries.deliverer.wait_rows import DeliveryInRow
from deliveries.delivery_fence import TopicOffsets
from deliveries.schedule import DeadLettered, Delivered, RetryAt
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC
from streams.topics import RETRY_TOPICS
from tests.support.made_attempts import attempted
from tests.support.made_deliveries import made_delivery
from tests.support.partition_parts import NOW, PartitionParts, SeenWriter, batch_at, read_delivery

ORDERED = 2
LATER = NOW + timedelta(seconds=4)
SOON = NOW + timedelta(seconds=1)


class MadeRounds:
    """The rounds of a partition, with a writer that is none."""

    def __init__(self, parts: PartitionParts, *answers: RoundAnswer, streaks: Any = None) -> None:
        self.parts = parts
        self.writer = SeenWriter(*answers)
        self.intake = PartitionIntake(parts.process, 0, SourceMarks({}), parts.deliveries, parts.log)
        self.intake.open_topic(DELIVERIES_TOPIC, TopicOffsets(0))
        writer, kept = cast(RoundWriter, self.writer), streaks or EndpointStreaks(None, {})
        self.rounds = PartitionRounds(parts.process, writer, self.intake, parts.deliveries, kept, parts.log)

    def read(self, *offsets: int, **changes: Any) -> None:
        """Read deliveries."""
        loaded = LoadedRecords([read_delivery(offset, **changes) for offset in offsets], [])
        self.intake.take(DELIVERIES_TOPIC, batch_at(*offsets), loaded)

    async def run(self) -> Any:
        """Run a round; what was written, None for nothing."""
        count = len(self.writer.rounds)
        self.parts.deliveries.work.set()
        await self.rounds.run_next()
        return self.writer.rounds[-1] if len(self.writer.rounds) > count else None


def due(next_due_at: datetime | None, *records: bytes) -> RoundAnswer:
    rows = [DeliveryInRow(bytes([number]) * 16, record) for number, record in enumerate(records)]
    return RoundAnswer({}, rows, next_due_at, ())


async def test_what_ended_is_published_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was read, as done, and its marks; then it is active no more, and there is room."""
    parts = PartitionParts(monkeypatch, unfinished_max=1)
    made = MadeRounds(parts)
    made.read(0)
    waiting = asyncio.create_task(made.intake.wait_for_room(made.intake.trackers[DELIVERIES_TOPIC]))
    parts.end(read_delivery(0), Delivered())
    assert made.rounds.is_behind
    work = await made.run()
    assert [record.topic for record in parts.published[0]] == [ATTEMPTS_TOPIC]
    assert [each.delivery.offset for each in work.ended] == [0]
    assert work.offsets[DELIVERIES_TOPIC].next_offset == 1
    assert [mark.source_offset for mark in work.marks.values()] == [0]
    assert work.aside == {b"busy"}
    assert parts.deliveries.active == set()
    assert not made.rounds.is_behind
    assert await waiting is False


async def test_what_kafka_has_not_acknowledged_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has, the rounds are behind."""
    parts = PartitionParts(monkeypatch)
    made = MadeRounds(parts)
    made.read(0)
    parts.end(read_delivery(0), Delivered())
    acknowledged, began = asyncio.Event(), asyncio.Event()

    async def publish(_records: object) -> int:
        began.set()
        await acknowledged.wait()
        return 0

    cast(Any, parts.process).publish = publish
    running = asyncio.create_task(made.run())
    await began.wait()
    assert made.writer.rounds == []
    assert made.rounds.is_behind
    assert made.intake.trackers[DELIVERIES_TOPIC].next_offset == 0
    acknowledged.set()
    await running
    assert len(made.writer.rounds) == 1


class _SharedWrites:
    """Rounds that share a transaction for a second, of which the first has written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
        self.parts = PartitionParts(monkeypatch, write_seconds=1.0, poll_seconds=8.0, **parts)
        self.made = MadeRounds(self.parts, due(None))

    async def run(self, *offsets: int, end: Any = None, **delivery: Any) -> Any:
        """Run a round in which these deliveries are read and end."""
        for offset in offsets:
            self.made.read(offset, **delivery)
            self.parts.end(read_delivery(offset, **delivery), end or Delivered())
        return await self.made.run()


async def test_rounds_of_what_is_delivered_share_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each publishes at once, and makes room; what was published is behind until it is written."""
    shared = _SharedWrites(monkeypatch, unfinished_max=1, round_seconds=1 / 64)
    made, parts = shared.made, shared.parts
    parts.queues.busy = set()
    await shared.run()
    for offset in range(2):
        assert await shared.run(offset) is None
        assert len(parts.published[-1]) == 1
        assert made.intake.trackers[DELIVERIES_TOPIC].next_offset == offset + 1
        assert made.rounds.is_behind
    assert len(parts.deliveries.active) == 2
    parts.clock.set(NOW + timedelta(seconds=0.75))
    assert made.rounds._seconds_to_next_round() == 0.25 - 1 / 64
    assert await made.run() is None
    parts.clock.set(NOW + timedelta(seconds=1))
    work = await made.run()
    assert [each.delivery.offset for each in work.ended] == [0, 1]
    assert work.offsets[DELIVERIES_TOPIC].next_offset == 2
    assert [len(records) for records in parts.published] == [0, 1, 1, 0, 0]
    assert not made.rounds.is_behind
    assert parts.deliveries.active == set()
    assert made.rounds._seconds_to_next_round() == 8.0
    assert await shared.run(2) is None, "the second begins anew with each transaction"


async def test_a_round_that_finds_no_room_to_wait_for_wakes_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room comes with Kafka's acknowledgement, whether the round writes or not."""
    shared = _SharedWrites(monkeypatch, unfinished_max=1)
    await shared.run()
    shared.made.read(0)
    waiting = asyncio.create_task(shared.made.intake.wait_for_room(shared.made.intake.trackers[DELIVERIES_TOPIC]))
    await asyncio.sleep(0)
    shared.parts.end(read_delivery(0), Delivered())
    assert await shared.made.run() is None
    assert await waiting is False


@pytest.mark.parametrize(
    ("end", "delivery"),
    [
        (RetryAt(LATER, None, 2), {}),
        (RetryAt(LATER, RETRY_TOPICS[2], 2), {}),
        (Postponed(LATER, "It is slow."), {}),
        (Delivered(), {"hop": 1}),
        (Cancelled("It is paused."), {}),
    ],
    ids=["a retry in a row", "a retry in a topic", "a wait", "a row that is over", "one that is cancelled"],
)
async def test_what_has_time_shares_a_transaction(
    monkeypatch: pytest.MonkeyPatch, end: Any, delivery: dict[str, Any]
) -> None:
    """It is on Kafka by then, and its row is written long before anything of it is due."""
    shared = _SharedWrites(monkeypatch)
    await shared.run()
    assert await shared.run(0, end=end, **delivery) is None
    assert shared.parts.published[-1] != []
    shared.parts.clock.set(NOW + timedelta(seconds=1))
    assert [each.end for each in (await shared.run(1)).ended] == [end, Delivered()]


@pytest.mark.parametrize(
    ("end", "delivery"),
    [
        (RetryAt(SOON, None, 2), {}),
        (Postponed(SOON, "It is slow."), {}),
        (DeadLettered(6), {}),
        (Delivered(), {"endpoint": ORDERED}),
    ],
    ids=["a retry in a row", "a wait", "a dead letter", "order counts"],
)
async def test_what_can_not_wait_is_written_at_once(
    monkeypatch: pytest.MonkeyPatch, end: Any, delivery: dict[str, Any]
) -> None:
    """Together with what has waited: it is due by the next transaction, or a kill would repeat it."""
    shared = _SharedWrites(monkeypatch, ordered=[ORDERED])
    await shared.run()
    assert await shared.run(0) is None
    work = await shared.run(1, end=end, **delivery)
    assert [each.delivery.source_offset for each in work.ended] == [0, 1]


async def test_records_of_retry_topics_are_compared_before_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is written of that moment; one that has time waits for the transaction that others share."""
    shared = _SharedWrites(monkeypatch)
    made = shared.made
    made.intake.open_topic(RETRY_TOPICS[2], TopicOffsets(0))
    await shared.run()
    await shared.run(0)

    async def read_retry(offset: int, due_at: datetime) -> Any:
        retry = read_delivery(offset, topic=RETRY_TOPICS[2], hop=1, due_at=due_at)
        made.intake.take(RETRY_TOPICS[2], batch_at(offset), LoadedRecords([retry], []))
        return retry, await made.run()

    first, work = await read_retry(0, LATER)
    assert work is None
    second, work = await read_retry(1, SOON)
    assert work.unverified == {first.delivery_id, second.delivery_id}
    assert [each.delivery.source_offset for each in work.ended] == [0]


async def test_what_postgres_is_asked_for_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of records that may be copies, rows that are due; and an endpoint that is gone is disabled."""
    shared = _SharedWrites(monkeypatch)
    made, parts = shared.made, shared.parts
    await shared.run()
    made.read(0, stream="redrive")
    assert len((await made.run()).unverified) == 1
    parts.queues.gone[b"gone"] = "It answered 410 Gone."
    assert (await made.run()).gone
    await shared.run(1, end=RetryAt(NOW + timedelta(seconds=0.5), None, 2))
    parts.clock.set(NOW + timedelta(seconds=0.5))
    assert (await made.run()).due_max > 0


async def test_no_more_ends_wait_than_a_kill_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the partition next reads what Kafka has of them, and that is bounded."""
    shared = _SharedWrites(monkeypatch, unwritten_max=3)
    await shared.run()
    assert await shared.run(0, 1) is None
    assert len((await shared.run(2)).ended) == 3
    made = shared.made
    made.intake.open_topic(RETRY_TOPICS[2], TopicOffsets(0))
    assert await shared.run(3, 4) is None
    retry = read_delivery(0, topic=RETRY_TOPICS[2], hop=1, due_at=LATER)
    made.intake.take(RETRY_TOPICS[2], batch_at(0), LoadedRecords([retry], []))
    assert len((await made.run()).ended) == 2, "records that are to be compared count"


async def test_a_round_with_nothing_to_do_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one looks for what is due; after that, when there is something, or a row is due."""
    parts = PartitionParts(monkeypatch, queue_max=30)
    made = MadeRounds(parts, due(None))
    first = await made.run()
    assert first.due_max == 30
    assert first.offsets == {ATTEMPTS_TOPIC: TopicOffsets(40, (), 40)}
    assert await made.run() is None
    made.read(0)
    parts.end(read_delivery(0), RetryAt(LATER, None, 2))
    assert (await made.run()).due_max == 0
    parts.clock.set(LATER - timedelta(milliseconds=1))
    assert await made.run() is None
    parts.clock.set(LATER)
    assert (await made.run()).due_max == 30


async def test_the_earliest_row_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was there before or came with a round."""
    parts = PartitionParts(monkeypatch)
    made = MadeRounds(parts, due(LATER))
    await made.run()
    for offset, later in ((0, timedelta(seconds=1)), (1, -timedelta(seconds=1))):
        made.read(offset)
        parts.end(read_delivery(offset), RetryAt(LATER + later, None, 2))
        assert (await made.run()).due_max == 0
    parts.clock.set(LATER - timedelta(seconds=1))
    assert (await made.run()).due_max > 0


@pytest.mark.parametrize(
    ("in_seconds", "waited_seconds"), [(None, 7.75), (3.0, 2.75), (20.0, 7.75), (0.25, 0.25), (0.0, 0.25)]
)
async def test_a_round_waits_for_work_or_for_the_next_row(
    monkeypatch: pytest.MonkeyPatch, in_seconds: float | None, waited_seconds: float
) -> None:
    """The time that it gathers for counts, and rows are looked for some time apart."""
    parts = PartitionParts(monkeypatch, poll_seconds=8.0, look_seconds=0.5, round_seconds=0.25)
    made = MadeRounds(parts, due(None if in_seconds is None else NOW + timedelta(seconds=in_seconds)))
    await made.run()
    assert made.rounds._seconds_to_next_round() == waited_seconds


async def test_a_wait_for_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round comes without any work in time, and none is begun twice for the same work."""
    parts = PartitionParts(monkeypatch, poll_seconds=0.001)
    made = MadeRounds(parts, due(None))
    await made.rounds.run_next()
    assert len(made.writer.rounds) == 1
    parts.deliveries.work.set()
    await made.rounds.run_next()
    assert not parts.deliveries.work.is_set()


async def test_what_is_due_in_rows_begins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as taken until it has ended; one that is under way goes on as it is."""
    parts = PartitionParts(monkeypatch, look_seconds=0.5)
    rows = [made_delivery(3, offset=offset) for offset in range(2)]
    monkeypatch.setattr(
        partition_rounds, "read_deliveries", lambda records: ([rows[int(each)] for each in records], [])
    )
    parts.deliveries.active.add(rows[1].delivery_id)
    made = MadeRounds(parts, due(NOW, b"0", b"1"), due(LATER))
    assert (await made.run()).taken == frozenset()
    assert parts.begun == [0]
    assert {rows[0].endpoint_id} in parts.endpoints.loaded
    assert await made.run() is None, "one look follows another by a time"
    parts.clock.set(NOW + timedelta(seconds=0.5))
    assert (await made.run()).taken == {rows[0].delivery_id}
    assert parts.deliveries.taken == {rows[0].delivery_id}
    parts.end(rows[0], Delivered())
    work = await made.run()
    assert (work.due_max, work.aside, work.wanted) == (0, frozenset(), {}), "nothing is asked"
    assert parts.deliveries.taken == set()


async def test_a_look_by_time_leaves_out_what_is_read_endpoint_by_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that has its share is not busy for a moment after each attempt: a look would read all that is due."""
    parts = PartitionParts(monkeypatch)
    made = MadeRounds(parts, due(None))
    parts.deliveries.left_in_rows[b"left"] = None
    work = await made.run()
    assert (work.wanted, work.aside) == ({}, {b"busy", b"left"})
    assert work.due_max > 0


async def test_where_one_may_be_due_at_once_endpoints_are_asked_about_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one of an entity does not wait for the next poll."""
    parts = PartitionParts(monkeypatch, ordered=[ORDERED])
    made = MadeRounds(parts, due(None), due(None))
    await made.run()
    parts.deliveries.left_in_rows[b"left"] = None
    parts.end(read_delivery(0, ORDERED), Postponed(None, "a test"))
    assert (await made.run()).wanted == {b"left": 8}


async def test_what_is_put_back_may_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written of it, and it is neither taken nor under way."""
    parts = PartitionParts(monkeypatch)
    row = made_delivery(3)
    monkeypatch.setattr(partition_rounds, "read_deliveries", lambda records: ([row for _ in records], []))
    made = MadeRounds(parts, due(NOW, b"row"), due(NOW, b"row"))
    await made.run()
    parts.queues.put_back(row)
    parts.clock.set(NOW + timedelta(seconds=1))
    again = await made.run()
    assert (list(again.ended), again.taken) == ([], frozenset())
    assert parts.begun == [0, 0]
    assert parts.published == [[], []]


async def test_a_row_that_can_not_be_read_is_told_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out from then on: an endpoint of which one row is tried would be tried with it for ever."""
    parts = PartitionParts(monkeypatch, look_seconds=0.5)
    made = MadeRounds(parts, due(NOW, made_delivery(3).next_value(1, NOW, 7), b"damaged"), due(None))
    with capture_logs() as lines:
        await made.run()
    damaged = bytes([1]) * 16
    assert [(line["event"], line["row"], line["log_level"]) for line in lines] == [
        ("delivery.unreadable", str(UUID(bytes=damaged)), "error")
    ]
    assert lines[0]["why"]
    assert len(parts.begun) == 1
    parts.clock.set(NOW + timedelta(seconds=1))
    assert damaged in (await made.run()).taken
    assert parts.deliveries.taken == {made_delivery(3).delivery_id}


class _LeftRows:
    """Rows of endpoints that are left, a second between two looks for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: RoundAnswer, **limits: Any) -> None:
        self.parts = PartitionParts(monkeypatch, poll_seconds=1.0, **limits)
        self.row = made_delivery(3)
        monkeypatch.setattr(partition_rounds, "read_deliveries", lambda records: ([self.row for _ in records], []))
        self.made = MadeRounds(self.parts, due(None), *answers)

    async def look(self, seconds: float) -> Any:
        """Run a round at a time; return what was asked for, None for nothing."""
        self.parts.clock.set(NOW + timedelta(seconds=seconds))
        return await self.made.run()

    async def wanted(self, seconds: float) -> dict[bytes, int]:
        """Run a round at a time; return the endpoints whose rows were asked for."""
        work = await self.look(seconds)
        return {} if work is None else dict(work.wanted)


async def test_rows_of_endpoints_that_get_nothing_are_looked_for_once_these_get_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As rows of a delivery are that is under way from elsewhere, or was put back."""
    left = _LeftRows(monkeypatch, due(None), due(None, b"row"))
    parts = left.parts
    assert (await left.look(0)).aside == {b"busy"}
    assert await left.wanted(5) == {}
    parts.queues.busy = set()
    assert await left.wanted(5.5) == {}, "a second after the last time"
    assert await left.wanted(6) == {b"busy": 8}
    assert await left.wanted(7) == {}
    parts.queues.put_back(left.row)
    parts.deliveries.active.add(left.row.delivery_id)
    assert await left.wanted(8) == {left.row.endpoint_id: 8}, "it was put back"
    assert parts.begun == []
    assert await left.wanted(9) == {left.row.endpoint_id: 8}, "it was under way"
    assert await left.wanted(10) == {}


async def test_of_a_suspect_endpoint_one_row_is_read_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of it are due: it is left out of what is, and has more until none is."""
    suspect = made_delivery(3).endpoint_id
    more = due(None, b"row")._replace(with_more=[suspect])
    left = _LeftRows(monkeypatch, more, due(None))
    parts = left.parts
    parts.queues.suspect = {suspect}
    assert (await left.look(0)).aside == {b"busy", suspect}
    work = await left.look(1)
    assert (work.wanted, work.probed) == ({suspect: 1}, {suspect})
    assert parts.begun == [0]
    parts.queues.busy.add(suspect)
    assert await left.wanted(2) == {}
    parts.queues.busy.remove(suspect)
    assert await left.wanted(2.5) == {}
    assert await left.wanted(3) == {suspect: 1}
    assert await left.wanted(4) == {}


async def test_looks_by_time_keep_no_endpoint_from_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often rows fall due: both are in one look, which asks for no row twice."""
    suspect = made_delivery(3).endpoint_id
    soon = [due(NOW + timedelta(seconds=step / 4)) for step in range(1, 9)]
    left = _LeftRows(monkeypatch, *soon, look_seconds=0.0)
    left.made.writer.answers[0] = due(NOW)
    left.parts.queues.suspect = {suspect}
    looks = [await left.look(step / 4) for step in range(9)]
    assert all(look.due_max for look in looks)
    assert [suspect in look.wanted for look in looks] == [step % 4 == 0 and step > 0 for step in range(9)]
    assert all(look.aside == {b"busy", suspect} for look in looks)
    left.parts.queues.put_back(made_delivery(4))
    left.made.writer.answers += [due(NOW + timedelta(seconds=3)), due(LATER)]
    both = await left.look(3)
    assert (both.due_max > 0, set(both.wanted)) == (True, {made_delivery(4).endpoint_id})
    assert both.aside == {b"busy", suspect, *both.wanted}


async def test_a_row_that_is_due_later_takes_nothing_from_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look by endpoint finds when one of that is due; the time that was known before stays."""
    left = _LeftRows(monkeypatch, due(LATER))
    left.made.writer.answers[0] = due(NOW + timedelta(seconds=2))
    await left.look(0)
    left.parts.queues.put_back(left.row)
    assert await left.wanted(1) == {left.row.endpoint_id: 8}
    assert (await left.look(2)).due_max > 0


async def test_an_endpoint_without_rows_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queues are told, so that no look by time leaves it out again."""
    suspect = made_delivery(3).endpoint_id
    left = _LeftRows(monkeypatch, due(None)._replace(without_rows=[suspect]))
    left.parts.queues.suspect = {suspect}
    await left.look(0)
    assert await left.wanted(1) == {suspect: 1}
    assert left.parts.queues.without_rows == {suspect}
    assert await left.wanted(2) == {}


async def test_an_endpoint_that_is_well_has_its_rows_one_look_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it may have more, whatever time looks are apart."""
    endpoint_id = made_delivery(3).endpoint_id
    left = _LeftRows(monkeypatch, due(None, b"row")._replace(with_more=[endpoint_id]), due(None))
    await left.look(0)
    left.parts.queues.put_back(left.row)
    assert left.made.rounds._seconds_to_next_round() == 1.0
    assert await left.wanted(1) == {endpoint_id: 8}
    assert left.made.rounds._seconds_to_next_round() == 0.0
    assert await left.wanted(1) == {endpoint_id: 8}
    left.parts.queues.put_back(left.row)
    assert await left.wanted(1.5) == {}, "it had no more"
    assert await left.wanted(2) == {endpoint_id: 8}


async def test_rows_of_no_more_endpoints_are_asked_for_than_a_look_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' are at once, each once; and no more rows in all than a look may have."""
    left = _LeftRows(monkeypatch, queue_max=3 * partition_rounds.WANTED_MAX)
    await left.look(0)
    rows = [made_delivery(number) for number in range(2 * partition_rounds.WANTED_MAX - 1)]
    for row in rows:
        left.parts.queues.put_back(row)
    first = await left.wanted(1)
    assert left.made.rounds._seconds_to_next_round() == 0.0
    second = await left.wanted(1)
    assert set(first.values()) == {3}
    assert (len(first), len(second)) == (partition_rounds.WANTED_MAX, partition_rounds.WANTED_MAX - 1)
    assert {*first, *second} == {row.endpoint_id for row in rows}
    assert await left.wanted(1) == {}


async def test_a_row_that_is_put_off_while_its_endpoint_is_busy_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for with the endpoint's others; where it is not due by then, at its time."""
    waiting = made_delivery(3)
    left = _LeftRows(monkeypatch, due(None), due(LATER), due(None))
    parts = left.parts
    await left.look(0)
    parts.queues.busy = {b"busy", waiting.endpoint_id}
    parts.end(waiting, Postponed(SOON, "It is slow."), attempted=False)
    assert (await left.look(0.5)).ended
    assert await left.look(2) is None
    parts.queues.busy = {b"busy"}
    assert await left.wanted(3) == {waiting.endpoint_id: 8}
    assert await left.look(3.5) is None
    assert (await left.look(4)).due_max > 0


async def test_more_than_one_look_brings_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever time looks are apart."""
    parts = PartitionParts(monkeypatch, queue_max=2, look_seconds=0.5)
    rows = [made_delivery(3, offset=offset) for offset in range(3)]
    monkeypatch.setattr(
        partition_rounds, "read_deliveries", lambda records: ([rows[int(each)] for each in records], [])
    )
    made = MadeRounds(parts, due(None, b"0", b"1")._replace(more_due=True), due(None, b"2"))
    assert await made.run() is not None
    assert await made.run() is not None
    assert await made.run() is None
    assert parts.begun == [0, 1, 2]


async def test_a_look_by_itself_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a transaction that is shared goes on waiting."""
    shared = _SharedWrites(monkeypatch)
    made, parts = shared.made, shared.parts
    await shared.run()
    assert len((await shared.run(0, end=RetryAt(SOON, None, 2))).ended) == 1
    assert await shared.run(1) is None
    parts.clock.set(SOON - timedelta(milliseconds=1))
    assert await shared.run(2) is None
    made.rounds._write_at_seconds += 10
    parts.clock.set(SOON)
    look = await shared.run(3)
    assert (look.due_max > 0, list(look.ended), look.offsets, look.marks) == (True, [], {}, {})
    assert len(parts.deliveries.active) == 3


async def test_deliveries_that_may_be_copies_are_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """And judged by the answer."""
    parts = PartitionParts(monkeypatch)
    known, new = (read_delivery(offset, stream="redrive") for offset in range(2))
    made = MadeRounds(parts, RoundAnswer({known.delivery_id: 3}, (), None, ()))
    made.read(0, 1, stream="redrive")
    work = await made.run()
    assert set(work.unverified) == {known.delivery_id, new.delivery_id}
    assert parts.begun == [1]


async def test_released_entities_go_on_where_no_row_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is asked for with them."""
    parts = PartitionParts(monkeypatch, ordered=[ORDERED])
    held = held_by(read_delivery(0, ORDERED))
    made = MadeRounds(parts, due(None), due(None), RoundAnswer({}, (), None, [held]), due(None))
    await made.run()
    parts.end(read_delivery(0, ORDERED), RetryAt(LATER, None, 2))
    await made.run()
    parts.deliveries.begin_again(read_delivery(0, ORDERED))
    parts.end(read_delivery(0, ORDERED), Delivered())
    work = await made.run()
    assert (work.released, work.due_max > 0) == ({held}, True)
    parts.deliveries.begin(read_delivery(1, ORDERED))
    assert parts.begun == [0], "rows of it are left"
    await made.run()
    parts.deliveries.begin(read_delivery(2, ORDERED))
    assert parts.begun == [0, 2]


async def test_endpoints_that_are_gone_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their answer or after their failures: once, and what is known of endpoints is read again."""
    parts = PartitionParts(monkeypatch)
    changes = [StreakChanges(), StreakChanges(), StreakChanges(notes=[_disabling()]), StreakChanges()]
    streaks = cast(Any, _SeenStreaks(changes))
    made = MadeRounds(parts, streaks=streaks)
    parts.queues.gone[b"gone"] = "It answered 410 Gone."
    assert (await made.run()).gone == {b"gone": "It answered 410 Gone."}
    assert parts.endpoints.refreshed == 1
    made.read(0)
    parts.end(read_delivery(0), Delivered())
    assert (await made.run()).gone == {}
    assert parts.endpoints.refreshed == 1
    assert [each.delivery.offset for each in streaks.noted] == [0]
    assert (await made.run()).streaks.disabled == [b"failing"]
    assert parts.endpoints.refreshed == 2
    assert parts.endpoints.disabled == [b"failing"]


async def test_recorded_attempts_stay_until_nobody_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the offset behind them is written, or behind what was published since."""
    delivery = read_delivery(0)
    recorded = {AttemptOf(delivery.delivery_id, "live", 0): attempted(0)}
    parts = PartitionParts(monkeypatch, recorded=recorded, needed_until=LATER)
    made = MadeRounds(parts, due(None))
    parts.behind = [50, 45, 0]
    assert (await made.run()).offsets == {}
    made.read(1)
    assert ATTEMPTS_TOPIC not in (await made.run()).offsets
    parts.clock.set(LATER)
    assert (await made.run()).offsets == {ATTEMPTS_TOPIC: TopicOffsets(50, (), 50)}
    assert await made.run() is None, "what is written is not written again"


async def test_what_a_record_says_is_written_before_the_record_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery may be read while a round is published: an owner that dies behind it leaves the record to the next."""
    delivery = read_delivery(0)
    recorded = {AttemptOf(delivery.delivery_id, "live", 0): attempted(0)}
    parts = PartitionParts(monkeypatch, recorded=recorded, needed_until=LATER)
    made = MadeRounds(parts, due(None))

    async def publish(_records: object) -> int:
        if parts.recorded.by_attempt:
            made.read(0)
        return 0

    cast(Any, parts.process).publish = publish
    first = await made.run()
    assert (first.ended, ATTEMPTS_TOPIC in first.offsets) == ([], False)
    second = await made.run()
    assert [each.recorded for each in second.ended] == [True]
    assert second.offsets[ATTEMPTS_TOPIC] == TopicOffsets(40, (), 40)


class _SeenStreaks:
    """Streaks that say what they are told to, and note nothing."""

    def __init__(self, changes: list[StreakChanges]) -> None:
        self._changes = changes
        self.noted: list[Any] = []

    def note(self, ended: Any, enabled_at: datetime | None) -> None:
        assert enabled_at is None
        self.noted.append(ended)

    def take_changes(self) -> StreakChanges:
        return self._changes.pop(0) if self._changes else StreakChanges()


def _disabling() -> Any:
    class Disabling:
        endpoint_id = b"failing"
        disables = True

    return Disabling()
