"""What a round asks for in rows: by time, by endpoint, or both, in one answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deliveries.deliverer import wait_rows
from deliveries.deliverer.round_writer import DeliveryRound, RoundAnswer, RoundWriter
from deliveries.deliverer.wait_rows import DeliveryInRow, WaitRows

SOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = SOON + timedelta(seconds=1)


def row(record: bytes) -> DeliveryInRow:
    """Return a delivery that is due."""
    return DeliveryInRow(b"d" * 16, record)


def answered(monkeypatch: pytest.MonkeyPatch, work: DeliveryRound, due: WaitRows, wanted: WaitRows) -> RoundAnswer:
    """Return the answer to a round that writes nothing, where these rows are found."""
    made: Any = RoundWriter(None, None, None, 0)  # type: ignore[arg-type]
    monkeypatch.setattr(wait_rows, "find_hops", lambda *_: {})
    monkeypatch.setattr(wait_rows, "find_due", lambda *_: due)
    monkeypatch.setattr(wait_rows, "find_wanted", lambda *_: wanted)
    answer: RoundAnswer = made._write(work)
    return answer


@pytest.mark.parametrize(("first", "second"), [(SOON, LATER), (LATER, SOON), (SOON, None), (None, SOON)])
def test_what_is_found_by_time_and_by_endpoint_is_one_answer(
    monkeypatch: pytest.MonkeyPatch, first: datetime | None, second: datetime | None
) -> None:
    """Each record of either, and the earlier one of their times."""
    work = DeliveryRound(due_max=3, wanted={b"well": 8, b"empty": 8})
    wanted = WaitRows([row(b"3")], second, [b"well"], [b"empty"])
    answer = answered(monkeypatch, work, WaitRows([row(b"1"), row(b"2")], first), wanted)
    assert answer == RoundAnswer({}, [row(b"1"), row(b"2"), row(b"3")], SOON, (), False, [b"well"], [b"empty"])


@pytest.mark.parametrize(("found", "more"), [(1, False), (2, True)])
def test_more_may_be_due_than_was_asked_for(monkeypatch: pytest.MonkeyPatch, found: int, more: bool) -> None:
    """Where as many were found; those of endpoints don't count."""
    work = DeliveryRound(due_max=2, wanted={b"well": 8})
    answer = answered(monkeypatch, work, WaitRows([row(b"due")] * found), WaitRows([row(b"wanted")] * 8))
    assert answer.more_due == more


def test_nothing_is_asked_for_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that only writes has an answer without rows."""
    found = WaitRows([row(b"1")], SOON, [b"well"], [b"empty"])
    assert answered(monkeypatch, DeliveryRound(), found, found) == RoundAnswer({}, [], None, ())
    assert not DeliveryRound(wanted={b"well": 1}).is_empty
