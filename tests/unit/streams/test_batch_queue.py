"""The queue of a partition: what is taken, what it costs, and which bytes stay reserved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.batch import EventBatch
from streams.batch_queue import BatchQueue
from streams.memory_budget import MemoryBudget


def batch(start: int, count: int, gap: int = 0) -> EventBatch:
    """So many records, and a gap behind them."""
    return EventBatch(
        topic="t",
        partition=0,
        token=1,
        fetched_from=start,
        next_offset=start + count + gap,
        offsets=list(range(start, start + count)),
        timestamps_ms=[0] * count,
        keys=[b"key"] * count,
        values=[b"v" * (start + index) for index in range(count)],
        headers=[bytes(4)] * count,
    )


@given(
    slices=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=5),
    takes=st.lists(st.none() | st.integers(1, 7), max_size=30),
)
def test_what_is_taken_is_what_was_put(slices: list[tuple[int, int]], takes: list[int | None]) -> None:
    """In order, with gaps, each take with at most its bound; nothing stays counted or reserved."""
    budget = MemoryBudget(1 << 20)
    queue, offset, taken = BatchQueue(budget), 0, []
    for count, gap in slices:
        if count + gap:
            queue.put(batch(offset, count, gap))
            offset += count + gap
    records = queue.records
    for records_max in (*takes, None):
        parts = queue.take(records_max)
        assert records_max is None or sum(len(part) for part, _ in parts) <= records_max
        assert all(size_bytes == part.size_bytes for part, size_bytes in parts)
        taken += [part for part, _ in parts]
        assert queue.records == records - sum(map(len, taken))
        assert budget.reserved_bytes == queue.size_bytes
    assert (queue.records, queue.size_bytes, len(queue)) == (0, 0, 0)
    if taken:
        joined = EventBatch.joined(taken)
        assert (joined.fetched_from, joined.next_offset, len(joined)) == (0, offset, records)


def test_a_record_of_a_long_slice_costs_no_more_than_one_of_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a partition gets over a record that Postgres can't take, each take is of one record."""
    copied = []
    between = EventBatch.between

    def counted(self: EventBatch, start: int, stop: int) -> EventBatch:
        copied.append(stop - start)
        return between(self, start, stop)

    monkeypatch.setattr(EventBatch, "between", counted)
    queue = BatchQueue(MemoryBudget(1 << 30))
    queue.put(batch(0, 2_000))
    for _ in range(2_000):
        queue.take(1)
    assert sum(copied) == 2_000
    assert not len(queue)


def test_a_slice_stays_reserved_until_all_of_it_is_taken() -> None:
    """Its lists hold every record until then; dropping it releases it."""
    budget = MemoryBudget(1 << 20)
    queue = BatchQueue(budget)
    queue.put(batch(0, 10))
    reserved = budget.reserved_bytes
    queue.take(9)
    assert budget.reserved_bytes == reserved
    queue.clear()
    assert (budget.reserved_bytes, queue.records, queue.size_bytes) == (0, 0, 0)
