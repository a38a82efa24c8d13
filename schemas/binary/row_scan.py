"""The scan that finds the rows of a block that are exactly one record each, before anything reads them.

A columnar reader reads joined values one after the other: a value with a byte too many or too few shifts its
neighbours, and one that is cut short makes the reader panic. So the joined bytes are scanned first, in numpy, with one
cursor for each row. The cursor moves over numbers in their shortest form, booleans that are 0 or 1, and arrays of one
block. A row is valid where its cursor ends exactly where its value ends: the recomputed length equals the record's. All
other rows go to the strict reader (schemas/binary/reader.py), which also accepts the unusual forms that Avro allows.
UTF-8 is not checked here.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from schemas.binary.avro_types import Array, AvroType, Fixed, Optional, Record, Scalar, fixed_size
from schemas.binary.reader import TIME_MAX, TIME_MIN

Positions = NDArray[numpy.int64]
Mask = NDArray[numpy.bool_]

ITEMS_MAX = 64
"""Arrays whose items differ in size are scanned item by item; rows with longer ones go to the strict reader."""
_NUMBER_BYTES_MAX = 9
"""A tenth byte would not fit 63 bits; rows whose number has one go to the strict reader."""
_PADDING = bytes(_NUMBER_BYTES_MAX + 8)


def valid_rows(avro_type: Record, joined: bytes, lengths: Positions) -> Mask:
    """Return which of the joined values, whose lengths are `lengths`, are exactly one record of this type."""
    body = numpy.frombuffer(joined + _PADDING, dtype=numpy.uint8)
    ends = numpy.cumsum(lengths)
    walk = _Walk(body, ends - lengths, ends)
    walk.skip(avro_type)
    walk.valid &= walk.position == walk.end
    return walk.valid


class _Walk:
    """A cursor for each row. Cursors of invalid rows stay inside their value, so that no gather goes out of bounds."""

    def __init__(self, body: NDArray[numpy.uint8], position: Positions, end: Positions) -> None:
        self.body = body
        self.position = position
        self.end = end
        self.valid: Mask = numpy.ones(len(position), dtype=numpy.bool_)

    def skip(self, avro_type: AvroType) -> None:
        """Move every cursor over one value of this type."""
        size = fixed_size(avro_type)
        match avro_type:
            case Scalar(kind="float" | "double"):
                self._skip_float(8 if size == 8 else 4)
            case Fixed(size=fixed):
                self._advance(fixed)
            case Record(fields=fields):
                for field in fields:
                    self.skip(field.type)
            case Scalar(kind="boolean"):
                self._invalidate(self.body[self.position] > 1)
                self._advance(1)
            case Scalar(kind="string" | "bytes"):
                length = self._read_number()
                self._invalidate(length < 0)
                self._advance(numpy.where(self.valid, length, 0))
            case Scalar(kind=kind):
                self._skip_bounded(*_BOUNDS[kind])
            case Optional(item=item, null_index=null_index):
                self._skip_optional(item, null_index)
            case Array(items=items):
                self._skip_array(items)

    def _invalidate(self, broken: Mask) -> None:
        if broken.any():
            self.valid &= ~broken

    def _advance(self, step: int | Positions) -> None:
        # A length of 2^62 and a position of a few megabytes still fit 63 bits.
        self.position = self.position + step
        beyond = self.position > self.end
        if beyond.any():
            self.valid &= ~beyond
            self.position = numpy.where(beyond, self.end, self.position)

    def _read_number(self) -> Positions:
        """Move over a zigzag varint and return the numbers; an overlong number, or one of ten bytes, is invalid."""
        byte = self.body[self.position]
        number = (byte & 0x7F).astype(numpy.int64)
        width = numpy.ones(len(byte), dtype=numpy.int64)
        rows = numpy.flatnonzero(byte >= 0x80)
        taken = 1
        while len(rows) and taken < _NUMBER_BYTES_MAX:
            whole = len(rows) == len(number)
            byte = self.body[(self.position if whole else self.position[rows]) + taken]
            part = (byte & 0x7F).astype(numpy.int64) << (7 * taken)
            if whole:
                number |= part
                width += 1
            else:
                number[rows] |= part
                width[rows] += 1
            taken += 1
            more = byte >= 0x80
            if not more.all():
                overlong = rows[byte == 0]
                self.valid[overlong] = False
                rows = rows[more]
        self.valid[rows] = False
        self._advance(width)
        return (number >> 1) ^ -(number & 1)

    def _skip_bounded(self, least: int, most: int) -> None:
        number = self._read_number()
        self._invalidate((number < least) | (number > most))

    def _skip_float(self, size: int) -> None:
        end = self.position + size
        inside = end <= self.end
        start = numpy.where(inside, self.position, 0)
        data = self.body[start[:, None] + numpy.arange(size)]
        number = data.view(f"<f{size}")[:, 0]
        self._invalidate(numpy.isnan(number))
        self._advance(size)

    def _skip_optional(self, item: AvroType, null_index: int) -> None:
        branch = self.body[self.position]
        present = branch == 2 * (1 - null_index)
        self._invalidate(~present & (branch != 2 * null_index))
        self._advance(1)
        if isinstance(item, Fixed):
            self._advance(numpy.where(present & self.valid, item.size, 0))
        else:
            self._skip_in(numpy.flatnonzero(present & self.valid), item)

    def _skip_array(self, items: AvroType) -> None:
        count = self._read_number()
        # Every item takes a byte at least, so a larger count is wrong; it would also overflow below.
        self._invalidate((count < 0) | (count > self.end - self.position))
        count = numpy.where(self.valid, count, 0)
        if isinstance(items, Fixed):
            self._advance(count * items.size)
        else:
            self._invalidate(count > ITEMS_MAX)
            for taken in range(int(count.max(initial=0, where=self.valid))):
                self._skip_in(numpy.flatnonzero((count > taken) & self.valid), items)
        filled = numpy.flatnonzero(count > 0)
        if len(filled):
            self.valid[filled] &= self.body[self.position[filled]] == 0
            self._advance((count > 0).astype(numpy.int64))

    def _skip_in(self, rows: Positions, avro_type: AvroType) -> None:
        """Move the cursors of these rows alone."""
        if not len(rows):
            return
        if len(rows) == len(self.position):
            self.skip(avro_type)
            return
        part = _Walk(self.body, self.position[rows], self.end[rows])
        part.skip(avro_type)
        self.position[rows] = part.position
        self.valid[rows] = part.valid


_BOUNDS = {
    "int": (-(1 << 31), (1 << 31) - 1),
    "long": (-(1 << 63), (1 << 63) - 1),
    "timestamp-micros": (TIME_MIN, TIME_MAX),
}
