"""Large record batches scanned in numpy: the columns that reading them record by record gives, in half of the time.

A cursor for each record moves over the fields that the format puts one behind the other (record batches of format 2,
https://kafka.apache.org/documentation/#recordbatch). Headers of records that differ in nothing but the bytes of their
values, as those of one type of events do, are written together. Whatever does not fit the format exactly is left to
who reads records one by one, and says what is wrong with them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy
from aiokafka.record.util import decode_varint
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from audit.canonical import NULL, field
from streams.kafka.record_columns import RecordColumns

LAYOUTS_MAX: Final = 16
"""Of the headers in one batch: each is looked for in all records that no other fits."""

_VARINT_BYTES_MAX: Final = 10
_WORD_BYTES: Final = 8
_LOG_APPEND_TIME: Final = 1

Positions = NDArray[numpy.int64]
Mask = NDArray[numpy.bool_]
Bytes = NDArray[numpy.uint8]


class NotScanned(Exception):
    """A batch has something that few have, or is no batch of this format at all."""


def scan_records(batch: Any, *, with_headers: bool) -> RecordColumns:
    """Return the records of a batch of aiokafka's Python class. Raises NotScanned."""
    count = batch._num_records
    if count < 1:
        raise NotScanned
    batch._maybe_uncompress()
    content = bytes(memoryview(batch._buffer)[batch._pos :])
    begins, ends = _records(content, count)
    # Cursors may look behind the last record; what they find there is past its end, and not used.
    body = numpy.frombuffer(content + bytes(_VARINT_BYTES_MAX + _WORD_BYTES), dtype=numpy.uint8)
    if body[begins].any():  # attributes, of which Kafka defines none
        raise NotScanned
    times, at = _varints(body, begins + 1)
    deltas, at = _varints(body, at)
    keys, at = _fields(content, body, at, ends)
    values, at = _fields(content, body, at, ends)
    if batch.timestamp_type == _LOG_APPEND_TIME:
        timestamps_ms = [batch.max_timestamp] * count
    else:
        timestamps_ms = (times + batch.first_timestamp).tolist()
    headers = _headers(content, body, at, ends) if with_headers else [b""] * count
    return RecordColumns((deltas + batch.base_offset).tolist(), timestamps_ms, keys, values, headers)


def _records(content: bytes, count: int) -> tuple[Positions, Positions]:
    """Return where each record begins, behind its length, and where it ends."""
    begins, ends, at = [], [], 0
    try:
        for _ in range(count):
            low, high = content[at], content[at + 1]
            if low & 1:  # a negative number
                raise NotScanned
            if low < 0x80:
                at += 1
                size = low >> 1
            elif high < 0x80:
                at += 2
                size = (low & 0x7F | high << 7) >> 1
            else:
                size, at = _number(content, at)
            begins.append(at)
            at += size
            ends.append(at)
    except IndexError:
        raise NotScanned from None
    if at != len(content):
        raise NotScanned
    return numpy.array(begins, numpy.int64), numpy.array(ends, numpy.int64)


def _varints(body: Bytes, at: Positions) -> tuple[Positions, Positions]:
    """Return the numbers at these positions, and the positions behind them."""
    digit = body[at].astype(numpy.int64)
    more, number, after = digit >= 0x80, digit & 0x7F, at + 1
    shift = 7
    while more.any():
        if shift > 56:
            raise NotScanned
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
        if (lengths < -1).any():
            raise NotScanned
        lengths = numpy.where(null, 0, lengths)
    behind = begins + lengths
    if (behind >= ends).any():  # at least the number of headers follows
        raise NotScanned
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
        layout = _Layout(content[at[rows[0]] : ends[rows[0]]])
        left = ends[rows] - at[rows] != layout.size
        of_size = numpy.flatnonzero(~left)  # no others: one record's headers may be as long as all the rest
        raw = sliding_window_view(body, layout.width)[at[rows[of_size]]]
        fits = layout.fits(raw)
        headers[rows[of_size[fits]]] = layout.canonical(raw[fits])
        left[of_size[~fits]] = True
        rows = rows[left]
        if not len(rows):
            found: list[bytes] = headers.tolist()
            return found
    raise NotScanned


class _Layout:
    """The headers of a record, and with them of all that differ in nothing but the bytes of their values."""

    def __init__(self, raw: bytes) -> None:
        self.size = len(raw)
        self.width = -(-self.size // _WORD_BYTES) * _WORD_BYTES
        """As many bytes in whole words, which are compared at once."""
        count, at = _number(raw, 0)
        if not 0 <= count <= self.size:
            raise NotScanned
        template, compared = bytearray(count.to_bytes(4, "big")), bytearray(b"\xff" * self.size)
        self._values: list[tuple[slice, slice]] = []
        for _ in range(count):
            length, at = _number(raw, at)
            if not 0 <= length <= self.size - at:
                raise NotScanned
            template += field(raw[at : at + length])
            length, at = _number(raw, at + length)
            if length == -1:
                template += NULL
                continue
            if not 0 <= length <= self.size - at:
                raise NotScanned
            template += length.to_bytes(4, "big")
            self._values.append((slice(at, at + length), slice(len(template), len(template) + length)))
            template += bytes(length)
            compared[at : at + length] = bytes(length)
            at += length
        if at != self.size:
            raise NotScanned
        self._template = numpy.frombuffer(bytes(template), numpy.uint8)
        self._raw, self._compared = (
            numpy.frombuffer(part.ljust(self.width, b"\0"), numpy.uint64) for part in (raw, bytes(compared))
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


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position behind it."""
    try:
        number, behind = decode_varint(data, at)
    except (IndexError, ValueError):
        raise NotScanned from None
    return number, behind
