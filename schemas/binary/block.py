"""Values of one Avro schema, read into a frame.

Joined values are an Avro block and are read in one call. Rows that a block can't be trusted with, and groups too small
to be worth one, are read record by record; both ways give the same frames and reject the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from schemas.binary.avro_types import Record
from schemas.binary.frames import align, from_block, from_records
from schemas.binary.reader import compile_reader, read_whole
from schemas.binary.row_scan import valid_rows
from schemas.errors import Undecodable
from schemas.polars_import import polars

RowIndexes = NDArray[numpy.int64]

BLOCK_ROWS_MIN = 24
"""Below this many rows of one schema, reading them one by one is faster."""


class BlockRead(NamedTuple):
    """The rows that were read, ascending, their frame, and the reasons of the rows that were not, by row index."""

    rows: RowIndexes
    frame: polars.DataFrame
    reasons: dict[int, str]


class BlockReader:
    """A reader of values of one schema into frames of another's columns."""

    def __init__(self, writer: Record, reader: Record) -> None:
        self.writer = writer
        self.reader = reader
        self._read_one = compile_reader(writer, reader)

    def read(self, values: Sequence[bytes], start: int) -> BlockRead:
        """Read every value, or give the reason why it is none; each value's record begins at byte `start`."""
        if len(values) < BLOCK_ROWS_MIN:
            return self.read_records(values, start, numpy.arange(len(values)))
        records = [value[start:] for value in values]
        lengths = numpy.fromiter(map(len, records), dtype=numpy.int64, count=len(records))
        joined = b"".join(records)
        valid = valid_rows(self.writer, joined, lengths)
        if valid.all():
            return self._read_block(values, start, numpy.arange(len(values)), joined)
        rows = numpy.flatnonzero(valid)
        one_by_one = self.read_records(values, start, numpy.flatnonzero(~valid))
        if not len(rows):
            return one_by_one
        return _merge_reads(self._read_block(values, start, rows, _join(values, start, rows)), one_by_one)

    def _read_block(self, values: Sequence[bytes], start: int, rows: RowIndexes, joined: bytes) -> BlockRead:
        """Read valid rows as one block; where one of them holds invalid UTF-8, halve until that row is alone."""
        try:
            return BlockRead(rows, align(from_block(self.writer, len(rows), joined), self.writer, self.reader), {})
        except (polars.exceptions.ComputeError, polars.exceptions.PanicException):
            if len(rows) < max(BLOCK_ROWS_MIN, 2):
                return self.read_records(values, start, rows)
        halves = numpy.array_split(rows, 2)
        first, second = (self._read_block(values, start, half, _join(values, start, half)) for half in halves)
        return _merge_reads(first, second)

    def read_records(self, values: Sequence[bytes], start: int, rows: RowIndexes) -> BlockRead:
        """Read these rows one by one, strictly."""
        kept: list[int] = []
        records: list[dict[str, object]] = []
        reasons: dict[int, str] = {}
        for row in rows.tolist():
            try:
                record = read_whole(self._read_one, values[row], start)
            except Undecodable as error:
                reasons[row] = error.reason
                continue
            assert isinstance(record, dict)
            kept.append(row)
            records.append(record)
        return BlockRead(numpy.asarray(kept, dtype=numpy.int64), from_records(self.reader, records), reasons)


def merge_frames(parts: Sequence[tuple[RowIndexes, polars.DataFrame]]) -> tuple[RowIndexes, polars.DataFrame]:
    """Join frames of the same columns into one, in the order of their rows."""
    if len(parts) == 1:
        return parts[0]
    rows = numpy.concatenate([part[0] for part in parts])
    frame = polars.concat([part[1] for part in parts], how="vertical", rechunk=True)
    order = numpy.argsort(rows)
    return rows[order], frame[order]


def _merge_reads(one: BlockRead, other: BlockRead) -> BlockRead:
    return BlockRead(*merge_frames([one[:2], other[:2]]), one.reasons | other.reasons)


def _join(values: Sequence[bytes], start: int, rows: RowIndexes) -> bytes:
    return b"".join([values[row][start:] for row in rows.tolist()])
