"""A batch is a piece of one partition's log: cut and joined, it covers the same part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.batch import EventBatch
from tests.support.batches import batch_of

RECORDS = [(b"key", bytes([number])) for number in range(6)]


def joined(batches: list[EventBatch]) -> EventBatch:
    first, *rest = batches
    for batch in rest:
        first = first.followed_by(batch)
    return first


def test_pieces_cover_the_whole() -> None:
    """Cutting anywhere and joining again gives the batch itself, gaps included."""
    batch = replace(batch_of(RECORDS, token=3, start=10), offsets=[10, 11, 15, 16, 17, 20], next_offset=25)

    for cut in range(len(batch)):
        assert joined([batch.between(0, cut), batch.between(cut, len(batch))]) == batch


def test_a_piece_begins_after_the_record_before_it() -> None:
    """A gap belongs to the piece behind it, so that no checkpoint passes a record that was not read."""
    batch = replace(batch_of(RECORDS, token=3, start=10), offsets=[10, 11, 15, 16, 17, 20], next_offset=25)

    later = batch.between(2, 6)

    assert (later.fetched_from, later.next_offset) == (12, 25)


def test_batches_with_a_hole_between_them_are_not_joined() -> None:
    """A slice that was lost on the way is noticed, not skipped."""
    with pytest.raises(ValueError, match="follow"):
        batch_of(RECORDS, token=3).followed_by(batch_of(RECORDS, token=3, start=7))


def test_batches_of_different_owners_are_not_joined() -> None:
    """What was read under an earlier token is stale."""
    with pytest.raises(ValueError, match="follow"):
        batch_of(RECORDS, token=3).followed_by(batch_of(RECORDS, token=4, start=6))
