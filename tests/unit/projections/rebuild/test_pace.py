"""The pace of a rebuild: a rate that all threads share, and chunks that fit it."""

from __future__ import annotations

import pytest

from projections.rebuild.pace import RebuildPace


class Clock:
    """A time that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_threads_share_a_rate() -> None:
    """Each waits until all that was folded before, by whichever thread, is paid for."""
    clock = Clock()
    pace = RebuildPace(1_000, clock)
    assert [pace.wait_seconds(500), pace.wait_seconds(1_000)] == [0.5, 1.5]
    clock.now += 1.0
    assert pace.wait_seconds(500) == 1.0


def test_time_that_was_not_used_is_not_saved_up() -> None:
    """After a pause the rate holds as at the begin."""
    clock = Clock()
    pace = RebuildPace(1_000, clock)
    clock.now += 60
    assert pace.wait_seconds(1_000) == 1.0


def test_without_a_rate_nobody_waits() -> None:
    """And chunks are as large as they get."""
    pace = RebuildPace(None)
    assert (pace.wait_seconds(10**9), pace.chunk_records) == (0.0, 200_000)


@pytest.mark.parametrize(("rate", "records"), [(1, 100), (5_000, 5_000), (10**9, 200_000)])
def test_a_chunk_is_what_the_rate_allows_in_a_second(rate: int, records: int) -> None:
    """Within bounds."""
    assert RebuildPace(rate).chunk_records == records
