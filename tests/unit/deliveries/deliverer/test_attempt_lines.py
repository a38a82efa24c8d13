"""The line of the log that each delivery gets that was due."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from deliveries.deliverer import attempt_lines
from deliveries.deliverer.attempt_lines import AttemptLines
from deliveries.deliverer.attempt_records import DeliveryEnd, EndedDelivery, Postponed
from deliveries.schedule import DeadLettered, Delivered, RetryAt
from runtime import metrics
from runtime.clock import FixedClock
from runtime.log_budget import LOG_LINES_PER_SECOND
from runtime.logging import get_logger
from tests.support.made_deliveries import made_delivery
from tests.support.partition_parts import NOW

WAIT = Postponed(NOW, "It is slow.")


class _SeenLines:
    def __init__(self) -> None:
        self.clock = FixedClock(NOW)
        self._lines = AttemptLines(get_logger("test"), self.clock)

    def write(self, end: DeliveryEnd, *, count: int = 1, attempted: bool = True) -> list[dict[str, object]]:
        """Return the lines of deliveries that ended so."""
        with capture_logs() as lines:
            for offset in range(count):
                delivery = made_delivery(1, offset=offset)
                self._lines.write(EndedDelivery(delivery=delivery, end=end, began_at=NOW, attempted=attempted))
        return [dict(line) for line in lines]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> _SeenLines:
    """Lines, of whatever level."""
    monkeypatch.setattr(attempt_lines, "writes_level", lambda _level: True)
    return _SeenLines()


def test_each_attempt_has_its_line(seen: _SeenLines) -> None:
    """However many there are; at debug where it was delivered."""
    failed = seen.write(RetryAt(NOW, None, 2), count=3 * LOG_LINES_PER_SECOND)
    assert {(line["log_level"], line["state"]) for line in failed} == {("info", "waiting")}
    assert len({line["delivery"] for line in failed}) == 3 * LOG_LINES_PER_SECOND
    assert [line["log_level"] for line in seen.write(Delivered(), count=2)] == ["debug", "debug"]


def test_a_line_says_which_event_and_why(seen: _SeenLines) -> None:
    """So that who reads it need not look the delivery up."""
    (line,) = seen.write(WAIT, attempted=False)
    assert line["event_id"] == str(UUID(bytes=made_delivery(1).event_id))
    assert (line["stream"], line["why"]) == (made_delivery(1).stream, "It is slow.")


def test_dead_letters_are_counted_apart(seen: _SeenLines) -> None:
    """By the state that a delivery has from then on, beside what came of the attempt."""
    before = [metrics.DELIVERER_ATTEMPTS.labels("failed", state)._value.get() for state in ("dead", "waiting")]
    seen.write(DeadLettered(6), count=2)
    seen.write(RetryAt(NOW, None, 2))
    after = [metrics.DELIVERER_ATTEMPTS.labels("failed", state)._value.get() for state in ("dead", "waiting")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1]


def test_few_of_those_that_wait_have_a_line(seen: _SeenLines) -> None:
    """The next one says how many had none."""
    assert len(seen.write(WAIT, count=LOG_LINES_PER_SECOND + 5, attempted=False)) == LOG_LINES_PER_SECOND
    assert len(seen.write(RetryAt(NOW, None, 2))) == 1
    seen.clock.set(NOW + timedelta(seconds=1))
    following = seen.write(WAIT, count=2, attempted=False)
    assert [line.get("left_out") for line in following] == [5, None]
    assert following[0]["endpoint"] == str(made_delivery(1).endpoint)


def test_no_line_is_made_that_nobody_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliverer has thousands a second."""
    levels: list[int] = []
    monkeypatch.setattr(attempt_lines, "writes_level", lambda level: levels.append(level))
    seen = _SeenLines()
    assert seen.write(Delivered()) + seen.write(WAIT, attempted=False) == []
    assert levels == [10, 20]
