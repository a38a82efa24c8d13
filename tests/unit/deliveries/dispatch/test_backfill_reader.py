"""The rate of backfills: what all partitions of a process publish of the past in a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deliveries.dispatch.backfill_reader import BackfillRate


@given(st.integers(1, 1_000), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 300)), max_size=60))
def test_over_time_the_rate_holds(per_second: int, slices: list[tuple[float, int]]) -> None:
    """However slices come: what is published is a second's worth ahead, and the last slice, at most."""
    now = 0.0
    rate = BackfillRate(per_second, lambda: now)
    published, largest = 0, 0
    for pause, deliveries in slices:
        now += pause
        if rate.has_room():
            rate.consume(deliveries)
            published, largest = published + deliveries, max(largest, deliveries)
        assert published <= per_second * (now + 1) + largest + 1e-6


def test_a_slice_that_uses_more_than_is_left_makes_the_next_one_wait() -> None:
    """As long as it takes to earn it, and no longer."""
    now = 0.0
    rate = BackfillRate(100, lambda: now)
    assert rate.has_room()
    rate.consume(250)
    now = 1.49
    assert not rate.has_room()
    now = 1.51
    assert rate.has_room()


def test_no_more_is_saved_than_what_a_second_lets_pass() -> None:
    """After a day without backfills the next one is no flood."""
    now = 0.0
    rate = BackfillRate(100, lambda: now)
    now = 86_400.0
    published = 0
    while rate.has_room() and published < 1_000:
        rate.consume(30)
        published += 30
    assert published == 120
