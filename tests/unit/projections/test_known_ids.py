"""Known event ids: none is ever missed, however they are added and asked for."""

from __future__ import annotations

from uuid import UUID

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections import known_ids
from projections.known_ids import LOG_RANGE_OFFSETS, OPEN_IDS_BYTES, FilterPositions, IdFilter, OpenIds, id_hashes
from schemas.polars_import import polars as pl

FIRST = 3 * LOG_RANGE_OFFSETS


def ids(numbers: range | list[int]) -> pl.Series:
    """Return ids as a batch has them."""
    return pl.Series([UUID(int=number).bytes for number in numbers], dtype=pl.Binary)


def asked(known: OpenIds, event_ids: pl.Series) -> list[tuple[int, int]]:
    hashes = id_hashes(event_ids)
    return sorted(known.ask(hashes, FilterPositions.of(hashes)))


def test_hashes_are_one_for_each_id() -> None:
    """Ids that differ in one bit of either half have other hashes."""
    numbers = [0, *(1 << bit for bit in range(128))]
    assert len(set(id_hashes(ids(numbers)).tolist())) == len(numbers)
    assert id_hashes(ids([])).tolist() == []


def test_a_filter_misses_no_id() -> None:
    """What was added is found again; of what was not, next to nothing in a filter that is nearly empty."""
    some, others = (
        FilterPositions.of(id_hashes(ids(range(1000)))),
        FilterPositions.of(id_hashes(ids(range(1000, 2000)))),
    )
    filtered = IdFilter()
    filtered.add(some)
    assert filtered.ask(some).tolist() == list(range(1000))
    assert len(filtered.ask(others)) < 10


def test_a_full_filter_asks_the_log_for_one_new_id_in_700() -> None:
    """With as many ids as a range can hold: what the docs say of its size and its error."""
    generator = numpy.random.default_rng(7)
    filtered = IdFilter()
    hashes = generator.integers(0, 2**64 - 1, LOG_RANGE_OFFSETS, dtype=numpy.uint64)
    filtered.add(FilterPositions.of(hashes))
    new = generator.integers(0, 2**64 - 1, 100_000, dtype=numpy.uint64)
    assert len(filtered.ask(FilterPositions.of(hashes[::100]))) == len(hashes[::100])
    assert 70 < len(filtered.ask(FilterPositions.of(new))) < 280


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.sampled_from([1, 16, 100, known_ids.PACKED_IDS]))
def test_open_ids_know_each_id_with_its_offset(sizes: list[int], packed: int) -> None:
    """However the records are cut into batches, whatever runs they are merged into, and which of these are packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_ids, "PACKED_IDS", packed)
        check_each_id_is_known(sizes)


def check_each_id_is_known(sizes: list[int]) -> None:
    """Add ids in batches of these sizes, and ask for all of them."""
    known, expected, offset = OpenIds(FIRST), dict[int, int](), FIRST
    for size in sizes:
        numbers = [len(expected) + row for row in range(size)]
        offsets = [offset + 2 * row for row in range(size)]
        expected |= dict(zip(numbers, offsets, strict=True))
        offset += 2 * size + 1
        known.add(id_hashes(ids(numbers)), numpy.array(offsets, numpy.int64), offset)
    numbers = list(expected)
    found = set(asked(known, ids(numbers)))
    assert found >= {(row, expected[number]) for row, number in enumerate(numbers)}
    assert len(found) <= 1.2 * len(numbers) + 9
    assert len(known) == len(numbers)
    assert known.next_offset == offset


def test_a_full_open_range_takes_no_more_than_is_counted_for_it() -> None:
    """Whatever the size of the batches; packed, an id takes half of what it takes in a run, and each is found."""
    generator = numpy.random.default_rng(7)
    hashes = generator.integers(0, 2**64 - 1, LOG_RANGE_OFFSETS, dtype=numpy.uint64)
    sizes: dict[int, int] = {}
    for batch in (500, 8_000, 50_000):
        known, most = OpenIds(FIRST), 0
        for first in range(0, LOG_RANGE_OFFSETS, batch):
            some = hashes[first : first + batch]
            known.add(some, FIRST + numpy.arange(first, first + len(some)), FIRST + first + len(some))
            most = max(most, known.size_bytes)
        sizes[batch] = most
        found = set(known.ask(hashes[::997], FilterPositions.of(hashes[::997])))
        assert found >= {(row, FIRST + 997 * row) for row in range(len(hashes[::997]))}
        assert len(found) < 1.2 * len(hashes[::997])
        assert len(known) == LOG_RANGE_OFFSETS
    assert max(sizes.values()) <= OPEN_IDS_BYTES < 7.5 * 2**20


def test_open_ids_do_not_know_others() -> None:
    """An id that only the filter takes for known has no offset."""
    known = OpenIds(0)
    known.add(id_hashes(ids(range(500))), numpy.arange(500), 500)
    bits = FilterPositions.of(id_hashes(ids(range(500, 3000))))
    known.filter.add(bits)
    assert asked(known, ids(range(500, 3000))) == []
    assert asked(OpenIds(0), ids([1])) == []


def test_ids_whose_hashes_are_equal_are_all_named() -> None:
    """The log then says which one it is: 44 bits of the hash and the offset are kept, and 24 where a run is packed."""
    for packed, same, other in ((known_ids.PACKED_IDS, 1, 1 << 20), (1, 1 << 39, 1 << 40)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known_ids, "PACKED_IDS", packed)
            known = OpenIds(FIRST)
            hashes = numpy.array([5 << 40, (5 << 40) + same, (5 << 40) + other], numpy.uint64)
            known.add(hashes[:1], numpy.array([FIRST + 9]), FIRST + 10)
            known.add(hashes[1:], numpy.array([FIRST + 11, FIRST + 12]), FIRST + 13)
        known.filter.add(FilterPositions.of(hashes))
        assert len(known._packed) == (2 if packed == 1 else 0)
        found = sorted(known.ask(hashes[:1], FilterPositions.of(hashes[:1])))
        assert found == [(0, FIRST + 9), (0, FIRST + 11)]


def test_runs_stay_few() -> None:
    """A look-up searches each of them: batches of one record make no run each."""
    known = OpenIds(0)
    for number in range(1000):
        known.add(id_hashes(ids([number])), numpy.array([number]), number + 1)
    assert len(known._runs) <= 11
    assert all(2 * len(later) < len(earlier) for earlier, later in zip(known._runs, known._runs[1:], strict=False))


def test_hashes_are_secret() -> None:
    """Who chooses ids can't choose those that share a hash: the factors are random and odd."""
    assert len(set(known_ids._FACTORS)) == 4
    assert all(int(factor) % 2 for factor in known_ids._FACTORS)


@pytest.mark.parametrize("step", ["concatenate", "sort", "searchsorted", "filter"])
def test_no_id_is_lost_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Ids from before stay known, and those that could not be added are still to be read from the log."""
    monkeypatch.setattr(known_ids, "PACKED_IDS", 16)
    known = OpenIds(0)
    known.add(id_hashes(ids(range(8))), numpy.arange(8), 8)

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    more = id_hashes(ids(range(8, 16)))
    with monkeypatch.context() as patch:
        patch.setattr(*((IdFilter, "add") if step == "filter" else (numpy, step)), refuse)
        with pytest.raises(MemoryError):
            known.add(more, numpy.arange(8, 16), 16)
    assert known.next_offset == 8
    assert asked(known, ids(range(8))) == [(row, row) for row in range(8)]
    known.add(more, numpy.arange(8, 16), 16)
    assert known.next_offset == 16
    assert {row for row, _ in asked(known, ids(range(16)))} == set(range(16))
