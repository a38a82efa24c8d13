"""Deliveries of a partition: begun in their order, resumed in time, and kept until what came of them is written."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from deliveries.attempts import Attempt
from deliveries.deliverer.attempt_records import Postponed
from deliveries.deliverer.delivery import Delivery
from deliveries.deliverer.entity_order import held_by
from deliveries.deliverer.recorded_attempts import AttemptOf
from deliveries.outcomes import AttemptOutcome
from deliveries.schedule import DeadLettered, Decision, Delivered, RetryAt
from schemas.delivery_records import DeliveryAttempted
from tests.support.made_attempts import attempted
from tests.support.partition_parts import NOW, PartitionParts, read_delivery

PLAIN, ORDERED = 1, 2
LATER = NOW + timedelta(seconds=4)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> PartitionParts:
    return PartitionParts(monkeypatch, ordered=[ORDERED])


def recorded_of(delivery: Delivery, outcome: str) -> dict[AttemptOf, DeliveryAttempted]:
    made = attempted(delivery.offset, endpoint_id=UUID(bytes=delivery.endpoint_id), outcome=outcome)
    return {AttemptOf(delivery.delivery_id, delivery.stream, delivery.hop): made}


def test_without_an_order_all_begin(parts: PartitionParts) -> None:
    """Each is active from then on."""
    for offset in range(2):
        parts.deliveries.begin(read_delivery(offset, PLAIN))
    assert parts.begun == [0, 1]
    assert parts.deliveries.active == {read_delivery(offset, PLAIN).delivery_id for offset in range(2)}
    assert not parts.deliveries.work.is_set()


@pytest.mark.parametrize("end", [Delivered(), DeadLettered(6)])
def test_the_next_of_an_entity_goes_when_the_one_before_is_done(parts: PartitionParts, end: Delivered) -> None:
    """Delivered, or dead where that lets others pass."""
    first, second = (read_delivery(offset, ORDERED) for offset in range(2))
    parts.deliveries.begin(first)
    parts.deliveries.begin(second)
    assert parts.begun == [0]
    assert second.delivery_id in parts.deliveries.active
    parts.end(first, end)
    assert parts.begun == [0, 1]
    assert parts.ends == [(0, type(end).__name__)]
    assert parts.deliveries.work.is_set()


@pytest.mark.parametrize(
    ("end", "blocks"), [(RetryAt(LATER, None, 2), False), (Postponed(LATER, "a test"), False), (DeadLettered(6), True)]
)
def test_those_behind_one_that_waits_are_kept_in_rows(
    parts: PartitionParts, end: RetryAt | Postponed | DeadLettered, blocks: bool
) -> None:
    """In their order, without a time; so is what comes later. Of other entities and endpoints nothing is."""
    first, second, third = (read_delivery(offset, ORDERED) for offset in range(3))
    for each in (first, second):
        parts.deliveries.begin(each)
    parts.end(first, end, blocks=blocks)
    parts.deliveries.begin(third)
    parts.deliveries.begin(read_delivery(3, ORDERED, entity_id=bytes(16)))
    assert parts.begun == [0, 3]
    assert parts.ends == [(0, type(end).__name__), (1, "Postponed"), (2, "Postponed")]
    behind = parts.deliveries.ended[1:]
    assert all(each.ordered and not each.attempted and each.began_at == NOW for each in behind)
    assert {each.end.until for each in behind if isinstance(each.end, Postponed)} == {None}


def test_an_entity_is_released_when_nothing_of_it_is_under_way(parts: PartitionParts) -> None:
    """Once: after the delivery that others wait in rows for."""
    waiting = read_delivery(0, ORDERED)
    parts.deliveries.begin(waiting)
    parts.end(waiting, RetryAt(LATER, None, 2))
    written = parts.deliveries.take_ended()
    assert parts.deliveries.take_ended() == []
    assert parts.deliveries.take_released(written) == set()
    parts.deliveries.note_written(written, (), ())
    parts.deliveries.begin_again(waiting)
    assert parts.begun == [0, 0]
    assert parts.deliveries.take_released(()) == set()
    parts.end(waiting, Delivered())
    written = parts.deliveries.take_ended()
    assert parts.deliveries.take_released(written) == {held_by(waiting)}
    assert parts.deliveries.take_released(()) == set()


def test_an_entity_whose_delivery_waits_behind_a_done_one_is_released(parts: PartitionParts) -> None:
    """What was put into a row behind another one may be the first by then; while one is under way it is not."""
    waiting, behind = (read_delivery(offset, ORDERED) for offset in range(2))
    parts.deliveries.begin(waiting)
    parts.end(waiting, RetryAt(LATER, None, 2))
    parts.deliveries.take_ended()
    parts.deliveries.begin(behind)
    kept = parts.deliveries.take_ended()
    assert parts.deliveries.take_released(kept) == {held_by(behind)}
    parts.deliveries.begin_again(waiting)
    assert parts.deliveries.take_released(kept) == set()


def test_an_entity_without_rows_goes_on_in_memory(parts: PartitionParts) -> None:
    """Only where it was released, none of its rows is left, and none is about to be written."""
    held = held_by(read_delivery(0, ORDERED))
    parts.end(read_delivery(0, ORDERED), RetryAt(LATER, None, 2))
    written = parts.deliveries.take_ended()
    parts.deliveries.note_written(written, [held], [held])
    parts.deliveries.begin(read_delivery(1, ORDERED))
    assert parts.begun == [], "its rows are not empty"
    parts.deliveries.note_written((), [held], [])
    parts.deliveries.begin(read_delivery(2, ORDERED))
    assert parts.begun == [], "the one before has no row yet"
    parts.deliveries.note_written(parts.deliveries.take_ended(), [held], [])
    parts.deliveries.begin(read_delivery(3, ORDERED))
    assert parts.begun == [3]


def counted(outcome: str, state: str) -> float:
    labels = {"outcome": outcome, "state": state}
    return REGISTRY.get_sample_value("plant_deliverer_attempts_total", labels) or 0.0


@pytest.mark.parametrize(
    ("status_code", "end", "outcome", "state"),
    [
        (500, RetryAt(LATER, None, 2), "failed", "waiting"),
        (503, DeadLettered(6), "throttled", "dead"),
        (204, Delivered(), "delivered", "delivered"),
    ],
)
@pytest.mark.parametrize("endpoint", [PLAIN, ORDERED])
def test_each_attempt_that_has_ended_has_its_line_and_is_counted(
    parts: PartitionParts, caplog: pytest.LogCaptureFixture, endpoint: int, status_code: int, end: Decision,
    outcome: str, state: str,
) -> None:  # fmt: skip
    """Once, by what came of it."""
    caplog.set_level(logging.DEBUG)
    delivery, before = read_delivery(0, endpoint), counted(outcome, state)
    parts.deliveries.begin(delivery)
    attempt = Attempt(outcome=AttemptOutcome(status_code=status_code), duration_seconds=0.5)
    with capture_logs() as lines:
        parts.end(delivery, end, attempt=attempt)
    assert [(line["event"], line["delivery"], line["outcome"], line["state"]) for line in lines] == [
        ("delivery.attempted", delivery.id_text, outcome, state)
    ]
    assert counted(outcome, state) == before + 1


def test_what_is_written_is_active_no_more(parts: PartitionParts) -> None:
    """Of it the attempts are counted, which free room for others."""
    for offset in range(3):
        parts.deliveries.begin(read_delivery(offset, PLAIN))
    parts.end(read_delivery(0, PLAIN), Delivered())
    parts.end(read_delivery(1, PLAIN), Postponed(LATER, "a test"), attempted=False)
    parts.deliveries.note_written(parts.deliveries.take_ended(), (), ())
    assert parts.deliveries.active == {read_delivery(2, PLAIN).delivery_id}
    assert parts.queues.written == [1]


def test_deliveries_of_retry_topics_go_when_they_are_due(parts: PartitionParts) -> None:
    """The earliest first, at its very time; what has no time at once; of the same time in the order of coming."""
    for offset, seconds in ((0, 2), (1, 1), (2, 1), (3, None)):
        due_at = None if seconds is None else NOW + timedelta(seconds=seconds)
        parts.deliveries.begin_at_due_time(read_delivery(offset, PLAIN, due_at=due_at))
    assert parts.deliveries.due_changed.is_set()
    assert len(parts.deliveries.active) == 4
    assert parts.deliveries.resume_due(NOW) == 1.0
    assert (parts.begun, parts.deliveries.waiting) == ([3], 3)
    assert parts.deliveries.resume_due(NOW + timedelta(seconds=1)) == 1.0
    assert parts.begun == [3, 1, 2]
    assert parts.deliveries.resume_due(NOW + timedelta(seconds=3)) is None
    assert parts.begun == [3, 1, 2, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_a_delivery_whose_time_has_come_waits_for_an_earlier_one_that_was_redriven(
    parts: PartitionParts, fails: bool
) -> None:
    """One at a time, whichever had waited; where the earlier one fails again the later one waits in a row."""
    later = read_delivery(2, ORDERED, due_at=NOW)
    parts.deliveries.begin_at_due_time(later)
    parts.deliveries.begin_again(read_delivery(1, ORDERED))
    parts.deliveries.resume_due(NOW)
    assert parts.begun == [1]
    if fails:
        parts.end(read_delivery(1, ORDERED), RetryAt(LATER, None, 2))
        assert parts.begun == [1]
        assert [(each.delivery.offset, each.end) for each in parts.deliveries.ended][-1:] == [
            (2, Postponed(None, "An earlier event of its entity waits."))
        ]
    else:
        parts.end(read_delivery(1, ORDERED), Delivered())
        assert parts.begun == [1, 2]


def test_a_delivery_that_goes_on_holds_the_next_of_its_entity(parts: PartitionParts) -> None:
    """From a retry topic, as from a row."""
    for offset, entity in ((0, 1), (1, 2)):
        going = read_delivery(offset, ORDERED, entity_id=entity.to_bytes(16, "big"), due_at=NOW)
        if entity == 1:
            parts.deliveries.begin_at_due_time(going)
            parts.deliveries.resume_due(NOW)
        else:
            parts.deliveries.begin_again(going)
        parts.deliveries.begin(read_delivery(offset + 5, ORDERED, entity_id=going.entity_id))
        assert parts.begun[-1] == offset
        parts.end(going, Delivered())
        assert parts.begun[-1] == offset + 5


@pytest.mark.parametrize("way", ["begin", "begin_at_due_time", "begin_again"])
def test_an_attempt_that_is_recorded_is_not_made_again(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What came of it is taken from the record, once."""
    delivery = read_delivery(0, PLAIN)
    parts = PartitionParts(monkeypatch, ordered=[ORDERED], recorded=recorded_of(delivery, "delivered"))
    getattr(parts.deliveries, way)(delivery)
    assert (parts.begun, parts.deliveries.waiting, parts.queues.gone) == ([], 0, {})
    (ended,) = parts.deliveries.ended
    assert (ended.recorded, ended.attempted, ended.end) == (True, False, Delivered())
    assert ended.began_at != NOW, "it is the time of the attempt"
    assert delivery.delivery_id in parts.deliveries.active
    assert parts.deliveries.work.is_set()
    parts.deliveries.begin(delivery)
    assert parts.begun == [0]


def test_a_record_that_says_gone_disables_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner before may not have come to it."""
    delivery = read_delivery(0, PLAIN)
    parts = PartitionParts(monkeypatch, recorded=recorded_of(delivery, "gone"))
    parts.deliveries.begin(delivery)
    assert set(parts.queues.gone) == {delivery.endpoint_id}


def test_where_order_counts_an_attempt_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind it have to go through its end."""
    delivery = read_delivery(0, ORDERED)
    parts = PartitionParts(monkeypatch, ordered=[ORDERED], recorded=recorded_of(delivery, "delivered"))
    parts.deliveries.begin(delivery)
    assert parts.begun == [0]
    assert parts.deliveries.ended == []
