"""What is done is remembered, in whatever order records end, and nothing else is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deliveries.deliverer.offset_tracker import OffsetTracker
from deliveries.delivery_fence import TopicOffsets
from streams.log_end import LoggedRecord, record_digest


@given(
    st.sets(st.integers(0, 60), min_size=1),
    st.lists(st.tuples(st.sampled_from(["read", "finish", "store", "restart"]), st.integers(0, 7)), max_size=80),
)
def test_what_was_stored_as_done_is_never_read_again_and_all_else_is(
    log: set[int], steps: list[tuple[str, int]]
) -> None:
    """An owner that begins again has just the records that were not done as the last checkpoint was written."""
    offsets, end = sorted(log), max(log) + 1
    stored, tracker = TopicOffsets(0), OffsetTracker(TopicOffsets(0))
    done_in_store: set[int] = set()
    done: set[int] = set()
    under_way: list[int] = []
    for step, size in steps:
        if step == "read":
            batch = [each for each in offsets if each >= tracker.position][:size]
            reaches = batch[-1] + 1 if batch else tracker.position
            fresh = tracker.read(reaches, batch)
            assert not done_in_store.intersection(fresh)
            assert done_in_store.union(fresh).issuperset(batch)
            under_way += fresh
        elif step == "finish" and under_way:
            offset = under_way.pop(size % len(under_way))
            tracker.finish(offset)
            done.add(offset)
        elif step == "store":
            stored, done_in_store = tracker.offsets(), set(done)
            assert all(each in done for each in offsets if each < stored.next_offset)
            assert tracker.next_offset == stored.next_offset
            assert stored.read_to >= stored.next_offset
            assert not [each for each in under_way if any(first <= each < last for first, last in stored.done)]
        elif step == "restart":
            tracker, under_way, done = OffsetTracker(stored), [], set(done_in_store)
        assert tracker.unfinished == len(under_way)
    tracker = OffsetTracker(stored)
    left = tracker.read(end, [each for each in offsets if each >= tracker.position])
    assert sorted(done_in_store.union(left)) == offsets
    assert not done_in_store.intersection(left)


def test_ranges_go_together() -> None:
    """Records that are done one after the other are one range, over gaps of the log too."""
    tracker = OffsetTracker(TopicOffsets(0))
    tracker.read(100, [0, 3, 9, 20, 50, 60])
    for offset in (3, 9, 20, 60):
        tracker.finish(offset)
    assert tracker.offsets() == TopicOffsets(0, ((1, 50), (51, 100)), 100)
    tracker.finish(0)
    assert tracker.offsets() == TopicOffsets(50, ((51, 100),), 100)
    tracker.finish(50)
    assert tracker.offsets() == TopicOffsets(100, (), 100)
    tracker.read(103, [100, 101, 102])
    assert tracker.offsets() == TopicOffsets(100, (), 103), "there is nothing between them"
    tracker.finish(101)
    assert tracker.offsets() == TopicOffsets(100, ((101, 102),), 103)
    tracker.read(106, [103, 104, 105])
    tracker.finish(103)
    assert tracker.offsets() == TopicOffsets(100, ((101, 102), (103, 104)), 106), "what waits behind it is one range"


def test_the_last_record_that_was_read_is_compared_when_it_comes_again() -> None:
    """Another one at its offset is told; records below it, and later ones, are not."""
    records = [LoggedRecord(offset, 1, b"key", b"%d" % offset, bytes(4)) for offset in range(4)]
    tracker = OffsetTracker(TopicOffsets(0))
    assert [tracker.compare(each) for each in records[:3]] == [None] * 3
    assert tracker.offsets().last == record_digest(records[2])
    again = OffsetTracker(tracker.offsets())
    assert [again.compare(each) for each in records] == [None] * 4
    assert again.offsets().last == record_digest(records[3])
    other = OffsetTracker(tracker.offsets())
    assert other.compare(LoggedRecord(1, 1, b"key", b"other", bytes(4))) is None
    told = other.compare(LoggedRecord(2, 1, b"key", b"other", bytes(4)))
    assert told is not None
    assert "offset 2" in told
