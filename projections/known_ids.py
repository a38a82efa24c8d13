"""Event ids that a partition's owner keeps in memory, so that asking for repeats costs no index.

Ids are kept as 64-bit hashes under a secret of the process: whoever chooses ids can't choose collisions. A hash that is
known may be another id's; the log has the last word (`projections/log_ranges.py`). One that is not known is new.

    OpenIds     the open range: each hash with its offset, in sorted runs that are merged as they grow; 8 bytes an id
    PackedRun   65,536 ids of it or more, once they are together: 24 bits of each hash and the offset; 4.1 bytes an id
    IdFilter    a closed range: a Bloom filter whose bits of an id stand in two 64-bit words; 16 bits an id
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy
from numpy.typing import NDArray

from schemas.polars_import import polars as pl

LOG_SCHEMA: Final = "log"
"""The schema of the ranges' tables."""

LOG_RANGE_OFFSETS: Final = 1 << 20
"""The most offsets of a range of the log, which `log_range_offsets()` in Postgres has too."""

FILTER_BITS_PER_ID: Final = 16
"""With :data:`BITS_SET` one new id in 700 is looked up in a closed range that lacks it (measured)."""

BITS_SET: Final = 3
"""In each of an id's two words."""

FILTER_WORDS: Final = LOG_RANGE_OFFSETS * FILTER_BITS_PER_ID // 64

FILTER_BYTES: Final = FILTER_WORDS * 8

PACKED_IDS: Final = 1 << 16
"""How many ids a run has at least when it is packed; one that is not has fewer than twice as many."""

_BUCKET_BITS: Final = 12
"""A packed run has buckets of some 16 to 32 ids, by the first bits of their hashes."""

OPEN_IDS_BYTES: Final = FILTER_BYTES + LOG_RANGE_OFFSETS * 4 + (LOG_RANGE_OFFSETS // PACKED_IDS) * (4 << 12) + (1 << 20)
"""The most memory that the ids of an open range take: 7.25 MiB. The last part is for runs that are not packed yet."""

Hashes = NDArray[numpy.uint64]
Rows = NDArray[numpy.intp]

Packed = NDArray[numpy.uint32]

_OFFSET_BITS: Final = numpy.uint64(LOG_RANGE_OFFSETS - 1)
_HASH_BITS: Final = ~_OFFSET_BITS
_BUCKET_SHIFT: Final = numpy.uint64(64 - _BUCKET_BITS)
_PACKED_SHIFT: Final = numpy.uint64(64 - _BUCKET_BITS - 12)
_PACKED_HASH_BITS: Final = numpy.uint64((1 << 12) - 1)
_PACKED_OFFSET_SHIFT: Final = numpy.uint64(20)
_PACKED_OFFSET_SHIFT32: Final = numpy.uint32(20)
_OFFSET_BITS32: Final = numpy.uint32(LOG_RANGE_OFFSETS - 1)
_SIX_BITS: Final = numpy.uint64(63)
_ONE: Final = numpy.uint64(1)
_HALF: Final = numpy.uint64(32)
_WORDS: Final = numpy.uint64(FILTER_WORDS)
_SHIFTS: Final = tuple(numpy.uint64(6 * number) for number in range(BITS_SET))
_FACTORS: Final = tuple(numpy.uint64(secrets.randbits(64) | 1) for _ in range(4))


def id_hashes(event_ids: pl.Series) -> Hashes:
    """Return the hashes of event ids of 16 bytes, none of them null."""
    words = numpy.frombuffer(b"".join(event_ids.to_list()), numpy.uint64).reshape(-1, 2)
    first, second, third, _ = _FACTORS
    hashes: Hashes = words[:, 0] * first
    hashes ^= hashes >> _HALF
    hashes += words[:, 1] * second
    hashes ^= hashes >> _HALF
    hashes *= third
    hashes ^= hashes >> _HALF
    return hashes


class FilterPositions(NamedTuple):
    """Where the bits of ids stand in any filter: in two words. Worked out once a batch."""

    first: tuple[Rows, Hashes]
    """The index of each id's first word, and the bits in it."""
    second: tuple[Rows, Hashes]

    @classmethod
    def of(cls, hashes: Hashes) -> FilterPositions:
        """Return the bits of hashes."""
        others = hashes * _FACTORS[-1]
        others ^= others >> _HALF
        return cls(_word_and_bits(hashes), _word_and_bits(others))


def _word_and_bits(hashes: Hashes) -> tuple[Rows, Hashes]:
    bits = _ONE << (hashes & _SIX_BITS)
    for shift in _SHIFTS[1:]:
        bits |= _ONE << ((hashes >> shift) & _SIX_BITS)
    return (((hashes >> _HALF) * _WORDS) >> _HALF).astype(numpy.intp), bits


class IdFilter:
    """The ids of one range, with false positives and without false negatives."""

    def __init__(self) -> None:
        self._words = numpy.zeros(FILTER_WORDS, numpy.uint64)

    def add(self, bits: FilterPositions) -> None:
        """Add ids."""
        for words, added in bits:
            numpy.bitwise_or.at(self._words, words, added)

    def ask(self, bits: FilterPositions) -> Rows:
        """Return the indexes of the ids that may be in the range, ascending."""
        words, wanted = bits.first
        rows = numpy.flatnonzero((self._words[words] & wanted) == wanted)
        words, wanted = bits.second
        few: Rows = rows[(self._words[words[rows]] & wanted[rows]) == wanted[rows]]
        return few


class OpenIds:
    """The applied and parked ids of the open range, with their offsets, up to `next_offset`."""

    def __init__(self, first_offset: int) -> None:
        self.first_offset = first_offset
        self.next_offset = first_offset
        """Ids of records below it are known."""
        self.filter = IdFilter()
        self._runs: list[Hashes] = []
        self._packed: list[PackedRun] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs)) + sum(map(len, self._packed))

    @property
    def size_bytes(self) -> int:
        """The memory that the ids take; at most :data:`OPEN_IDS_BYTES`."""
        return FILTER_BYTES + sum(run.nbytes for run in self._runs) + sum(run.size_bytes for run in self._packed)

    def add(self, hashes: Hashes, offsets: NDArray[numpy.int64], next_offset: int) -> None:
        """Add ids of records, and note that those below `next_offset` are known."""
        if len(hashes):
            self.filter.add(FilterPositions.of(hashes))
            relative = (offsets - self.first_offset).astype(numpy.uint64)
            runs = _merged(self._runs, numpy.sort((hashes & _HASH_BITS) | relative))
            if len(runs[0]) >= PACKED_IDS:
                self._runs, self._packed = runs[1:], [*self._packed, PackedRun(runs[0])]
            else:
                self._runs = runs
        self.next_offset = next_offset  # last: where memory ran out above, the ids are still to be read from the log

    def ask(self, hashes: Hashes, bits: FilterPositions) -> Iterator[tuple[int, int]]:
        """Yield the index of each id that may be in the range, with the offset of the record that it may be."""
        rows = self.filter.ask(bits)
        if not len(rows):
            return
        for packed in self._packed:
            for index, offset in packed.ask(hashes[rows]):
                yield int(rows[index]), self.first_offset + offset
        wanted = hashes[rows] & _HASH_BITS
        for run in self._runs:
            at = numpy.searchsorted(run, wanted)
            candidates = numpy.flatnonzero(at < len(run))
            while len(candidates):
                entries = run[at[candidates]]
                equal = (entries & _HASH_BITS) == wanted[candidates]
                candidates, entries = candidates[equal], entries[equal]
                for index, entry in zip(candidates, entries, strict=True):
                    yield int(rows[index]), self.first_offset + int(entry & _OFFSET_BITS)
                at[candidates] += 1
                candidates = candidates[at[candidates] < len(run)]


class PackedRun:
    """Many ids of the open range with their offsets, in 32 bits each: 12 of the hash, behind those that name its
    bucket, and 20 of the offset.

    One that is not there has a false entry in one of 250 runs, and the log is asked.
    """

    def __init__(self, run: Hashes) -> None:
        """Pack a sorted run of hashes and offsets."""
        buckets = numpy.arange(1, 1 << _BUCKET_BITS, dtype=numpy.uint64) << _BUCKET_SHIFT
        starts = numpy.concatenate(([0], numpy.searchsorted(run, buckets), [len(run)]))
        self._starts: Packed = starts.astype(numpy.uint32)
        self._entries: Packed = (
            ((run >> _PACKED_SHIFT) & _PACKED_HASH_BITS) << _PACKED_OFFSET_SHIFT | (run & _OFFSET_BITS)
        ).astype(numpy.uint32)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """The memory that the ids take."""
        return self._starts.nbytes + self._entries.nbytes

    def ask(self, hashes: Hashes) -> Iterator[tuple[int, int]]:
        """Yield the index of each hash that may be in the run, with the offset from the range's first one."""
        buckets = (hashes >> _BUCKET_SHIFT).astype(numpy.intp)
        wanted = ((hashes >> _PACKED_SHIFT) & _PACKED_HASH_BITS).astype(numpy.uint32)
        at, end = self._starts[buckets].astype(numpy.intp), self._starts[buckets + 1].astype(numpy.intp)
        behind = end.copy()
        while len(open_ones := numpy.flatnonzero(at < behind)):  # the first entry of a hash, by halves
            middle = (at[open_ones] + behind[open_ones]) // 2
            is_less = self._entries[middle] >> _PACKED_OFFSET_SHIFT32 < wanted[open_ones]
            at[open_ones[is_less]] = middle[is_less] + 1
            behind[open_ones[~is_less]] = middle[~is_less]
        candidates = numpy.flatnonzero(at < end)
        while len(candidates):
            entries = self._entries[at[candidates]]
            equal = entries >> _PACKED_OFFSET_SHIFT32 == wanted[candidates]
            candidates, entries = candidates[equal], entries[equal]
            for index, entry in zip(candidates, entries, strict=True):
                yield int(index), int(entry & _OFFSET_BITS32)
            at[candidates] += 1
            candidates = candidates[at[candidates] < end[candidates]]


def _merged(runs: Sequence[Hashes], run: Hashes) -> list[Hashes]:
    """Return sorted runs with one more; each is less than half as long as the one before, so there are few."""
    merged = [*runs, run]
    while len(merged) > 1 and 2 * len(merged[-1]) >= len(merged[-2]):
        last, before = merged.pop(), merged.pop()
        merged.append(numpy.sort(numpy.concatenate((before, last)), kind="stable"))
    return merged
