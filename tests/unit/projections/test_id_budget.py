"""The budget of known ids: filters while there is room, open ranges in any case."""

from __future__ import annotations

from projections.id_budget import IdBudget
from runtime import metrics


def test_filters_are_kept_while_there_is_room() -> None:
    """What is given back can be taken again."""
    budget = IdBudget(10)
    assert [budget.try_reserve(4) for _ in range(3)] == [True, True, False]
    assert budget.reserved_bytes == 8
    budget.release(4)
    assert budget.try_reserve(6)
    assert not budget.try_reserve(1)


def test_open_ranges_are_counted_in_any_case() -> None:
    """Without their ids nothing could be written; filters then find no room."""
    budget = IdBudget(10)
    budget.reserve(12)
    assert budget.reserved_bytes == 12
    assert budget.is_exceeded
    assert not budget.try_reserve(0)


def test_the_metric_shows_what_is_counted() -> None:
    """After each change, whichever it was."""
    budget = IdBudget(10)
    for change in (lambda: budget.reserve(7), lambda: budget.try_reserve(2), lambda: budget.release(4)):
        change()
        assert metrics.WORKER_KNOWN_IDS_BYTES._value.get() == budget.reserved_bytes
    assert budget.reserved_bytes == 5
