"""A batch is a piece of one partition's log: cut and joined, it covers the same part."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from audit.canonical import headers_bytes
from streams.batch import EventBatch
from streams.errors import OwnershipLost
from tests.support.batches import batch_of

RECORDS = [(b"key", bytes([number])) for number in range(6)]


def test_pieces_cover_the_whole() -> None:
    """Cutting anywhere and joining again gives the batch itself, gaps included."""
    batch = replace(batch_of(RECORDS, token=3, start=10), offsets=[10, 11, 15, 16, 17, 20], next_offset=25)

    for cut in range(len(batch)):
        assert EventBatch.joined([batch.between(0, cut), batch.between(cut, len(batch))]) == batch


def test_a_piece_begins_after_the_record_before_it() -> None:
    """A gap belongs to the piece behind it, so that no checkpoint passes a record that was not read."""
    batch = replace(batch_of(RECORDS, token=3, start=10), offsets=[10, 11, 15, 16, 17, 20], next_offset=25)

    later = batch.between(2, 6)

    assert (later.fetched_from, later.next_offset) == (12, 25)


def test_batches_with_a_hole_between_them_are_not_joined() -> None:
    """A slice that was lost on the way is noticed, not skipped; it is read again, which is no defect."""
    with pytest.raises(OwnershipLost, match="Offsets 6 to 7 have not arrived"):
        EventBatch.joined([batch_of(RECORDS, token=3), batch_of(RECORDS, token=3, start=7)])


def test_batches_of_different_owners_are_not_joined() -> None:
    """What was read under an earlier token is stale."""
    with pytest.raises(OwnershipLost):
        EventBatch.joined([batch_of(RECORDS, token=3), batch_of(RECORDS, token=4, start=6)])


def test_each_record_is_moved_once_however_many_slices_are_joined() -> None:
    """Joining them pair by pair copied what was joined already: quadratic in their number."""
    slices = [CountingBatch.of(batch_of(RECORDS[:1], token=3, start=start)) for start in range(500)]

    assert EventBatch.joined(slices).offsets == list(range(500))

    assert sum(each.offsets.read for each in slices if isinstance(each.offsets, CountingList)) == 500


class CountingList(list[int]):
    """A list that counts how many of its items are read."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        self.read += len(self)
        return super().__iter__()


class CountingBatch:
    """Makes batches whose offsets are counted."""

    @staticmethod
    def of(batch: EventBatch) -> EventBatch:
        return replace(batch, offsets=CountingList(batch.offsets))


def test_the_size_counts_what_python_holds() -> None:
    """Within a fifth of what is allocated, for records as ingress makes them, and for many or long headers."""
    for value_bytes, headers, header_bytes in ((60, 7, 20), (1, 0, 0), (100, 50, 4), (10, 2, 5_000)):
        gc.collect()  # Python keeps freed tuples for the next ones: they would be counted wrongly, before and after
        tracemalloc.start()
        records = [
            (
                1_000_000 + number,
                1_760_000_000_000 + number,
                b"%036d" % number,
                bytes(value_bytes),
                headers_bytes([(f"ce_{name}", bytes(header_bytes)) for name in range(headers)]),
            )
            for number in range(200)
        ]
        offsets, timestamps_ms, keys, values, all_headers = ([record[at] for record in records] for at in range(5))
        del records
        gc.collect()
        batch = EventBatch("t", 0, 1, 0, 9_000_000, offsets, timestamps_ms, keys, values, list(all_headers))
        allocated, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.8 < batch.size_bytes / allocated < 1.2
