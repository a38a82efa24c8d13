"""The budget of known ids: filters while there is room, open ranges in any case."""

from __future__ import annotations

from projections.id_budget import IdBudget


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
    assert not budget.try_reserve(0)
