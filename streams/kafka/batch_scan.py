"""Record batches scanned in numpy, many at a time: the columns that reading them record by record gives.

A cursor for each record moves over the fields that the format puts one behind the other (record batches of format 2,
https://kafka.apache.org/documentation/#recordbatch), in all batches at once. Headers of records that differ in nothing
but the bytes of their values, as those of one type of events do, are written together. Batches that do not fit the
format exactly are named, and left to who reads records one by one, and says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy
from aiokafka.record.util import decode_varint
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from audit.canonical import NULL, field
from streams.kafka.record_columns import RecordColumns

LAYOUTS_MAX: Final = 16
"""Of the headers in one scan: each is looked for in all records that no other fits."""

_VARINT_BYTES_MAX: Final = 10
_WORD_BYTES: Final = 8

Positions = NDArray[numpy.int64]
Mask = NDArray[numpy.bool_]
Bytes = NDArray[numpy.uint8]

_STEPS: Final = tuple((low >> 1) + 1 if low < 0x80 else (low & 0x7F) // 2 + 2 for low in range(256))
"""From one record to the next by the first byte of its length, and by the least bits where the second one has more."""


class BatchContent(NamedTuple):
    """The records of a batch, as bytes that are not compressed, and what its header says of them."""

    content: bytes | bytearray | memoryview
    records: int
    base_offset: int
    last_delta: int
    """From the first offset that is the batch's to its last one, whether or not records have them."""
    first_timestamp_ms: int
    append_time_ms: int | None
    """The time of all records, where the broker gave it."""


class NotScanned(Exception):
    """Some batches have something that few have, or are none of this format at all; `batches` are their indexes."""

    def __init__(self, batches: Iterable[int]) -> None:
        super().__init__()
        self.batches = frozenset(batches)


class _NotScannedRecords(Exception):
    """Some records; `rows` are their indexes."""

    def __init__(self, rows: Positions) -> None:
        super().__init__()
        self.rows = rows


def scan_records(batches: Sequence[BatchContent], *, with_headers: bool) -> RecordColumns:
    """Return the records of one or more batches of one partition. Raises NotScanned.

    Their offsets ascend, and each is one of its batch's.
    """
    # Cursors may look behind the last record; what they find there is past its end, and not used.
    content = b"".join([*(batch.content for batch in batches), bytes(_VARINT_BYTES_MAX + _WORD_BYTES)])
    starts = _starts(content, batches)
    counts = [batch.records for batch in batches]
    try:
        return _scanned(content, starts, batches, counts, with_headers)
    except _NotScannedRecords as unfit:
        raise NotScanned(numpy.searchsorted(numpy.cumsum(counts), unfit.rows, side="right").tolist()) from None


def _starts(content: bytes, batches: Sequence[BatchContent]) -> Positions:
    """Return where the length of each record is, as far as two bytes say; it ends with the end of all."""
    starts, at, stop, count, offset = list[int](), 0, 0, 0, batches[0].base_offset
    for index, batch in enumerate(batches):
        stop += len(batch.content)
        count += batch.records
        while at < stop:
            starts.append(at)
            high = content[at + 1]
            if high < 0x80:  # of a length of one byte it is the record's attributes, which are 0
                at += _STEPS[content[at]] + (high << 6)
            else:
                at = _end(content, at)
        if at != stop or len(starts) != count or not batch.records or batch.base_offset < offset:
            raise NotScanned([index])
        offset = batch.base_offset + batch.last_delta + 1
    return numpy.array([*starts, stop], numpy.int64)


def _end(content: bytes, start: int) -> int:
    """Return where a record ends; where it has no length, something behind all records."""
    try:
        size, begin = decode_varint(content, start)
    except (IndexError, ValueError):
        size = -1
    return begin + size if size >= 0 else len(content) + 1


def _scanned(
    content: bytes, starts: Positions, batches: Sequence[BatchContent], counts: Sequence[int], with_headers: bool
) -> RecordColumns:
    body = numpy.frombuffer(content, dtype=numpy.uint8)
    sizes, begins = _varints(body, starts[:-1])
    ends = starts[1:]
    _refuse((begins + sizes != ends) | (body[begins] != 0))  # attributes, of which Kafka defines none
    times, at = _varints(body, begins + 1)
    deltas, at = _varints(body, at)
    offsets = deltas + numpy.repeat([batch.base_offset for batch in batches], counts)
    _refuse((deltas < 0) | (deltas > numpy.repeat([batch.last_delta for batch in batches], counts)))
    _refuse(numpy.diff(offsets, prepend=offsets[0] - 1) <= 0)
    keys, at = _fields(content, body, at, ends)
    values, at = _fields(content, body, at, ends)
    timestamps = times + numpy.repeat([batch.first_timestamp_ms for batch in batches], counts)
    row = 0
    for batch in batches:
        if batch.append_time_ms is not None:
            timestamps[row : row + batch.records] = batch.append_time_ms
        row += batch.records
    headers = _headers(content, body, at, ends) if with_headers else [b""] * len(begins)
    return RecordColumns(offsets.tolist(), timestamps.tolist(), keys, values, headers)


def _refuse(unfit: Mask) -> None:
    if unfit.any():
        raise _NotScannedRecords(numpy.flatnonzero(unfit))


def _varints(body: Bytes, at: Positions) -> tuple[Positions, Positions]:
    """Return the numbers at these positions, and the positions behind them."""
    digit = body[at].astype(numpy.int64)
    more, number, after = digit >= 0x80, digit & 0x7F, at + 1
    shift = 7
    while more.any():
        if shift > 56:
            raise _NotScannedRecords(numpy.flatnonzero(more))
        digit = numpy.where(more, body[after], 0).astype(numpy.int64)
        number |= (digit & 0x7F) << shift
        after = after + more
        more = digit >= 0x80
        shift += 7
    return (number >> 1) ^ -(number & 1), after


def _fields(content: bytes, body: Bytes, at: Positions, ends: Positions) -> tuple[list[bytes | None], Positions]:
    """Return the nullable bytes at these positions, and the positions behind them."""
    lengths, begins = _varints(body, at)
    null = lengths < 0
    if null.any():
        _refuse(lengths < -1)
        lengths = numpy.where(null, 0, lengths)
    behind = begins + lengths
    _refuse(behind >= ends)  # at least the number of headers follows
    if (lengths == lengths[0]).all() and lengths[0]:  # keys that are ids
        found: list[bytes | None] = [*_rows(sliding_window_view(body, lengths[0])[begins])]
    else:
        found = [content[begin:end] for begin, end in zip(begins.tolist(), behind.tolist(), strict=True)]
    if null.any():
        for row in numpy.flatnonzero(null).tolist():
            found[row] = None
    return found, behind


def _headers(content: bytes, body: Bytes, at: Positions, ends: Positions) -> list[bytes]:
    """Return the canonical bytes of each record's headers."""
    headers, rows = numpy.empty(len(at), object), numpy.arange(len(at))
    for _ in range(LAYOUTS_MAX):
        layout = _Layout(_parsed(content, rows[0], at, ends))
        left = ends[rows] - at[rows] != layout.size
        of_size = numpy.flatnonzero(~left)  # no others: one record's headers may be as long as all the rest
        raw = sliding_window_view(body, layout.width)[at[rows[of_size]]]
        fits = layout.fits(raw)
        headers[rows[of_size[fits]]] = layout.canonical(raw[fits])
        left[of_size[~fits]] = True
        rows = rows[left]
        if not len(rows):
            break
    for row in rows.tolist():
        headers[row] = _parsed(content, row, at, ends).canonical()
    found: list[bytes] = headers.tolist()
    return found


class _Headers(NamedTuple):
    """The headers of a record, where their values are, and where these are to be in the canonical bytes."""

    raw: bytes
    template: bytearray
    """The canonical bytes without values."""
    values: list[tuple[slice, slice]]

    def canonical(self) -> bytes:
        """Return the canonical bytes."""
        for value, into in self.values:
            self.template[into] = self.raw[value]
        return bytes(self.template)


def _parsed(content: bytes, row: int, begins: Positions, ends: Positions) -> _Headers:
    """Return the headers of one record."""
    raw, values = content[begins[row] : ends[row]], list[tuple[slice, slice]]()
    try:
        count, at = decode_varint(raw, 0)
        if not 0 <= count <= len(raw):
            raise ValueError
        template = bytearray(count.to_bytes(4, "big"))
        for _ in range(count):
            length, at = decode_varint(raw, at)
            if not 0 <= length <= len(raw) - at:
                raise ValueError
            template += field(raw[at : at + length])
            length, at = decode_varint(raw, at + length)
            if length == -1:
                template += NULL
                continue
            if not 0 <= length <= len(raw) - at:
                raise ValueError
            template += length.to_bytes(4, "big")
            values.append((slice(at, at + length), slice(len(template), len(template) + length)))
            template += bytes(length)
            at += length
        if at != len(raw):
            raise ValueError
    except (IndexError, ValueError):
        raise _NotScannedRecords(numpy.array([row])) from None
    return _Headers(raw, template, values)


class _Layout:
    """The headers of a record, and with them of all that differ in nothing but the bytes of their values."""

    def __init__(self, headers: _Headers) -> None:
        self.size = len(headers.raw)
        self.width = -(-self.size // _WORD_BYTES) * _WORD_BYTES
        """As many bytes in whole words, which are compared at once."""
        self._values = headers.values
        compared = bytearray(b"\xff" * self.size)
        for value, _ in headers.values:
            compared[value] = bytes(value.stop - value.start)
        self._template = numpy.frombuffer(bytes(headers.template), numpy.uint8)
        self._raw, self._compared = (
            numpy.frombuffer(part.ljust(self.width, b"\0"), numpy.uint64) for part in (headers.raw, bytes(compared))
        )

    def fits(self, raw: Bytes) -> Mask:
        """Return which of these headers have this layout, if they are of its size."""
        different = (raw.view(numpy.uint64) ^ self._raw) & self._compared
        return numpy.logical_not(different.any(axis=1))

    def canonical(self, raw: Bytes) -> list[bytes]:
        """Return the canonical bytes of the headers of records that have this layout."""
        written = numpy.empty((len(raw), len(self._template)), numpy.uint8)
        written[:] = self._template
        for value, into in self._values:
            written[:, into] = raw[:, value]
        return _rows(written)


def _rows(table: Bytes) -> list[bytes]:
    """Return each row's bytes."""
    rows: list[bytes] = table.view(f"V{table.shape[1]}")[:, 0].tolist()
    return rows
