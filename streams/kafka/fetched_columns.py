"""Fetched batches read into columns: scanned together where they have many records, and else one by one.

A scan takes some 0.2 ms whatever is in it, which small batches share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from streams.kafka.batch_scan import BatchContent, NotScanned, scan_records
from streams.kafka.lenient_records import ColumnBatch
from streams.kafka.record_columns import RecordColumns

SCANNED_MIN: Final = 300
"""Fewer records are read one by one in the time of a scan."""

SCANNED_BYTES: Final = 4 * 1024 * 1024
"""A scan ends with the batch that reaches this: its bytes are held twice, and stay in the processor's cache."""

SCANS_MAX: Final = 2
"""Of a record, before its batch is read by itself: who writes batches of which none fits makes no more work."""

_Fetched = tuple[ColumnBatch, BatchContent | None]


class FetchedColumns:
    """The columns of what aiokafka unpacks, in order, from a position on."""

    def __init__(self, position: int) -> None:
        self.parts: list[RecordColumns] = []
        self.records = 0
        """How many they are, with those that batches which wait say that they have."""
        self._waiting: list[ColumnBatch] = []
        self._position = self._unpacked_to = position

    def add(self, unpacked: Any) -> None:
        """Add a batch, which waits to be read with others, or columns, or one record."""
        if isinstance(unpacked, ColumnBatch):
            self._waiting.append(unpacked)
            self.records += unpacked.count
            return
        self.read()
        self._append(unpacked if isinstance(unpacked, RecordColumns) else RecordColumns.of([unpacked]))

    def read(self) -> None:
        """Read the batches that wait. Raises what reading them one by one raises, of the first that does."""
        waiting, self._waiting = self._waiting, []
        self.records -= sum(batch.count for batch in waiting)
        for columns, next_offset in columns_of(waiting):
            self._append(columns)
            self._unpacked_to = next_offset

    def _append(self, columns: RecordColumns) -> None:
        if columns and columns.offset >= self._unpacked_to:  # aiokafka drops what ends below
            self.parts.append(columns.since(self._position))
            self.records += len(self.parts[-1])
            self._position = self._unpacked_to = columns.offset + 1


def columns_of(batches: Iterable[ColumnBatch]) -> Iterator[tuple[RecordColumns, int]]:
    """Yield the records of a partition's batches, in their order, and the offset behind the batches that have them."""
    group: list[_Fetched] = []
    size_bytes = 0
    for batch in batches:
        group.append((batch, content := _content(batch)))
        size_bytes += len(content.content) if content is not None else 0
        if size_bytes >= SCANNED_BYTES:
            yield from _read(group)
            group, size_bytes = [], 0
    yield from _read(group)


def _content(batch: ColumnBatch) -> BatchContent | None:
    """Return a batch's content; None where it can't be decompressed, which who reads it says when it is its turn."""
    try:
        return batch.content()
    except Exception:
        return None


def _read(group: Sequence[_Fetched], scans: int = SCANS_MAX) -> Iterator[tuple[RecordColumns, int]]:
    """Read batches by one scan; those that don't fit one by one, and what is between them by others."""
    if not scans or sum(batch.count for batch, _ in group) < SCANNED_MIN:
        for batch, _ in group:
            yield batch.columns(), batch.next_offset
        return
    contents = [content for _, content in group if content is not None]
    unfit = frozenset(index for index, (_, content) in enumerate(group) if content is None)
    if not unfit:
        last = group[-1][0]
        try:
            columns = scan_records(contents, with_headers=last.with_headers)
        except NotScanned as error:
            unfit = error.batches
        else:
            yield columns, last.next_offset
            return
    for is_unfit, run in groupby(range(len(group)), unfit.__contains__):
        yield from _read([group[index] for index in run], 0 if is_unfit else scans - 1)
