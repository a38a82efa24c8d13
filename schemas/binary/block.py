"""A Kafka batch's values, decoded in columns.

Values of one schema, joined, are an Avro block and are read in one call. Rows that a block can't be trusted with, and
groups too small to be worth one, are read record by record; both ways give the same frames and refuse the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from schemas import codec
from schemas.binary.avro_types import Record
from schemas.binary.frames import align, columns, from_block, from_records
from schemas.binary.reader import compile_reader, read_whole
from schemas.binary.row_scan import valid_rows
from schemas.errors import Undecodable
from schemas.events import Event
from schemas.field_limits import first_broken
from schemas.polars_import import polars
from schemas.registry import Registered

Rows = NDArray[numpy.int64]

BLOCK_ROWS_MIN = 24
"""Below this many rows of one schema, reading them one by one is faster."""


@dataclass(frozen=True, slots=True)
class DecodedEvents:
    """The events of one type: `rows` are the places of their values in the batch, ascending, `frame` their fields."""

    event_type: str
    rows: Rows
    frame: polars.DataFrame


@dataclass(frozen=True, slots=True)
class RejectedValue:
    """A value that is no event, by its place in the batch."""

    row: int
    reason: str


def decode_batch(
    values: Sequence[bytes | None], topic: str | None = None
) -> tuple[list[DecodedEvents], list[RejectedValue]]:
    """Every value is in the result once: in one frame, in the columns of today's schema, or rejected with a reason.

    Accepts exactly what :func:`schemas.codec.decode` accepts. With `topic`, values whose schema is not registered for
    that topic are rejected. Rejected rows come in ascending order, frames in the order of their first value.
    """
    rejected: list[RejectedValue] = []
    parts: dict[type[Event], list[tuple[Rows, polars.DataFrame]]] = {}
    for known, rows in _by_schema(values, topic, rejected):
        reader = reader_of(known)
        kept, frame, refused = reader.read([values[row] or b"" for row in rows], codec.WIRE_PREFIX.size)
        places = numpy.asarray(rows, dtype=numpy.int64)
        rejected += [RejectedValue(rows[place], reason) for place, reason in refused.items()]
        if len(kept):
            parts.setdefault(known.event, []).append((places[kept], frame))
    decoded: list[DecodedEvents] = []
    for event, pieces in parts.items():
        found = _within_limits(event, *_merge(pieces), rejected)
        if len(found.rows):
            decoded.append(found)
    return decoded, sorted(rejected, key=lambda refusal: refusal.row)


class BlockReader:
    """Reads values of one schema into frames of another's columns."""

    def __init__(self, writer: Record, reader: Record) -> None:
        self.writer = writer
        self.reader = reader
        self._read_one = compile_reader(writer, reader)

    def read(self, values: Sequence[bytes], start: int) -> tuple[Rows, polars.DataFrame, dict[int, str]]:
        """The accepted places, ascending, their frame, and place to reason of the others.

        Each value's record begins at byte `start`.
        """
        if len(values) < BLOCK_ROWS_MIN:
            return self.read_records(values, start, numpy.arange(len(values)))
        records = [value[start:] for value in values]
        lengths = numpy.fromiter(map(len, records), dtype=numpy.int64, count=len(records))
        joined = b"".join(records)
        sound = valid_rows(self.writer, joined, lengths)
        if sound.all():
            return self._read_block(values, start, numpy.arange(len(values)), joined)
        places = numpy.flatnonzero(sound)
        odd = self.read_records(values, start, numpy.flatnonzero(~sound))
        if not len(places):
            return odd
        return _together(self._read_block(values, start, places, _join(values, start, places)), odd)

    def _read_block(
        self, values: Sequence[bytes], start: int, places: Rows, joined: bytes
    ) -> tuple[Rows, polars.DataFrame, dict[int, str]]:
        """Rows that are sound can still hold invalid UTF-8: halving finds them without giving up the rest."""
        try:
            return places, align(from_block(self.writer, len(places), joined), self.writer, self.reader), {}
        except (polars.exceptions.ComputeError, polars.exceptions.PanicException):
            if len(places) < max(BLOCK_ROWS_MIN, 2):
                return self.read_records(values, start, places)
        halves = numpy.array_split(places, 2)
        first, second = (self._read_block(values, start, half, _join(values, start, half)) for half in halves)
        return _together(first, second)

    def read_records(
        self, values: Sequence[bytes], start: int, places: Rows
    ) -> tuple[Rows, polars.DataFrame, dict[int, str]]:
        """Read these places one by one, strictly."""
        kept: list[int] = []
        records: list[dict[str, object]] = []
        refused: dict[int, str] = {}
        for place in places.tolist():
            try:
                record = read_whole(self._read_one, values[place], start)
            except Undecodable as error:
                refused[place] = error.reason
                continue
            assert isinstance(record, dict)
            kept.append(place)
            records.append(record)
        return numpy.asarray(kept, dtype=numpy.int64), from_records(self.reader, records), refused


def _join(values: Sequence[bytes], start: int, places: Rows) -> bytes:
    return b"".join([values[place][start:] for place in places.tolist()])


def _together(
    one: tuple[Rows, polars.DataFrame, dict[int, str]], other: tuple[Rows, polars.DataFrame, dict[int, str]]
) -> tuple[Rows, polars.DataFrame, dict[int, str]]:
    rows, frame = _merge([one[:2], other[:2]])
    return rows, frame, one[2] | other[2]


def _merge(pieces: Sequence[tuple[Rows, polars.DataFrame]]) -> tuple[Rows, polars.DataFrame]:
    """Frames of the same columns as one, in the order of their rows."""
    if len(pieces) == 1:
        return pieces[0]
    rows = numpy.concatenate([piece[0] for piece in pieces])
    frame = polars.concat([piece[1] for piece in pieces], how="vertical", rechunk=True)
    order = numpy.argsort(rows)
    return rows[order], frame[order]


def _within_limits(
    event: type[Event], rows: Rows, frame: polars.DataFrame, rejected: list[RejectedValue]
) -> DecodedEvents:
    broken = first_broken(event, frame)
    if broken:
        rejected += [RejectedValue(int(rows[place]), reason) for place, reason in broken.items()]
        good = numpy.ones(len(rows), dtype=numpy.bool_)
        good[list(broken)] = False
        rows, frame = rows[good], frame.filter(polars.Series(good))
    return DecodedEvents(event.event_type, rows, frame)


def _by_schema(
    values: Sequence[bytes | None], topic: str | None, rejected: list[RejectedValue]
) -> list[tuple[Registered, list[int]]]:
    """Rows by the schema they name; rows that name none are rejected."""
    by_prefix: dict[bytes | None, list[int]] = {}
    for row, value in enumerate(values):
        prefix = None if value is None else value[: codec.WIRE_PREFIX.size]
        if prefix in by_prefix:
            by_prefix[prefix].append(row)
        else:
            by_prefix[prefix] = [row]
    groups = []
    for prefix, rows in by_prefix.items():
        try:
            groups.append((codec.registered(prefix, topic), rows))
        except Undecodable as error:
            rejected += [RejectedValue(row, error.reason) for row in rows]
    return groups


_READERS: dict[int, BlockReader] = {}


def reader_of(known: Registered) -> BlockReader:
    """The reader of a registered schema, made once a process."""
    reader = _READERS.get(known.version.id)
    if reader is None:
        reader = _READERS[known.version.id] = BlockReader(known.writer, known.reader)
    return reader


def empty_frame(event: type[Event]) -> polars.DataFrame:
    """A frame without rows in the columns that :func:`decode_batch` gives for this type."""
    return columns(codec.avro_type_of(event)).to_frame()
