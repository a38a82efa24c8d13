"""Finding the rows of a block that are exactly one record each, before anything reads them.

A columnar reader reads joined values one after the other: a value with a byte too many or too few shifts its
neighbours, and one that is cut short makes the reader panic. So the joined bytes are first walked here, in numpy, with
one cursor a row. A row is sound when its cursor, having taken every number in its shortest form, every boolean as 0 or
1, every array as one block, ends exactly where its value ends: its recomputed encoded length equals its record's. Rows
that are not sound are left to the strict reader (schemas/binary/reader.py), which accepts what is odd but legal.
UTF-8 is not looked at here.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from schemas.binary.avro_types import Array, AvroType, Fixed, Optional, Record, Scalar, fixed_size
from schemas.binary.reader import TIME_MAX, TIME_MIN

Positions = NDArray[numpy.int64]
Mask = NDArray[numpy.bool_]

ITEMS_MAX = 64
"""Arrays of items of unlike size are walked item by item; rows with more of them are left to the strict reader."""
_NUMBER_BYTES_MAX = 9
"""A tenth byte would not fit 63 bits; the few legal numbers that have one are left to the strict reader."""
_PADDING = bytes(_NUMBER_BYTES_MAX + 8)


def valid_rows(avro_type: Record, joined: bytes, lengths: Positions) -> Mask:
    """Which of the values, given joined and by their lengths, are exactly one record of this avro_type."""
    body = numpy.frombuffer(joined + _PADDING, dtype=numpy.uint8)
    ends = numpy.cumsum(lengths)
    walk = _Walk(body, ends - lengths, ends)
    walk.take(avro_type)
    walk.sound &= walk.position == walk.end
    return walk.sound


class _Walk:
    """A cursor a row. Rows found unsound are kept inside their value, so that no gather goes out of bounds."""

    def __init__(self, body: NDArray[numpy.uint8], position: Positions, end: Positions) -> None:
        self.body = body
        self.position = position
        self.end = end
        self.sound: Mask = numpy.ones(len(position), dtype=numpy.bool_)

    def take(self, avro_type: AvroType) -> None:
        """Move every cursor over one value."""
        size = fixed_size(avro_type)
        match avro_type:
            case Scalar(kind="float" | "double"):
                self._take_float(8 if size == 8 else 4)
            case Fixed(size=fixed):
                self._advance(fixed)
            case Record(fields=fields):
                for field in fields:
                    self.take(field.type)
            case Scalar(kind="boolean"):
                self._refuse(self.body[self.position] > 1)
                self._advance(1)
            case Scalar(kind="string" | "bytes"):
                length = self._take_number()
                self._refuse(length < 0)
                self._advance(numpy.where(self.sound, length, 0))
            case Scalar(kind=kind):
                self._take_bounded(*_BOUNDS[kind])
            case Optional(item=item, null_index=null_index):
                self._take_optional(item, null_index)
            case Array(items=items):
                self._take_array(items)

    def _refuse(self, broken: Mask) -> None:
        if broken.any():
            self.sound &= ~broken

    def _advance(self, step: int | Positions) -> None:
        # A length of 2^62 and a position of a few megabytes still fit 63 bits.
        self.position = self.position + step
        beyond = self.position > self.end
        if beyond.any():
            self.sound &= ~beyond
            self.position = numpy.where(beyond, self.end, self.position)

    def _take_number(self) -> Positions:
        """Zigzag varints; rows whose number is overlong or has ten bytes are refused."""
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
                self.sound[overlong] = False
                rows = rows[more]
        self.sound[rows] = False
        self._advance(width)
        return (number >> 1) ^ -(number & 1)

    def _take_bounded(self, least: int, most: int) -> None:
        number = self._take_number()
        self._refuse((number < least) | (number > most))

    def _take_float(self, size: int) -> None:
        end = self.position + size
        inside = end <= self.end
        start = numpy.where(inside, self.position, 0)
        data = self.body[start[:, None] + numpy.arange(size)]
        number = data.view(f"<f{size}")[:, 0]
        self._refuse(numpy.isnan(number))
        self._advance(size)

    def _take_optional(self, item: AvroType, null_index: int) -> None:
        branch = self.body[self.position]
        present = branch == 2 * (1 - null_index)
        self._refuse(~present & (branch != 2 * null_index))
        self._advance(1)
        if isinstance(item, Fixed):
            self._advance(numpy.where(present & self.sound, item.size, 0))
        else:
            self._take_in(numpy.flatnonzero(present & self.sound), item)

    def _take_array(self, items: AvroType) -> None:
        count = self._take_number()
        # Every item takes a byte at least, so a larger count is wrong; it would also overflow below.
        self._refuse((count < 0) | (count > self.end - self.position))
        count = numpy.where(self.sound, count, 0)
        if isinstance(items, Fixed):
            self._advance(count * items.size)
        else:
            self._refuse(count > ITEMS_MAX)
            for taken in range(int(count.max(initial=0, where=self.sound))):
                self._take_in(numpy.flatnonzero((count > taken) & self.sound), items)
        filled = numpy.flatnonzero(count > 0)
        if len(filled):
            self.sound[filled] &= self.body[self.position[filled]] == 0
            self._advance((count > 0).astype(numpy.int64))

    def _take_in(self, rows: Positions, avro_type: AvroType) -> None:
        """Move only these rows' cursors."""
        if not len(rows):
            return
        if len(rows) == len(self.position):
            self.take(avro_type)
            return
        part = _Walk(self.body, self.position[rows], self.end[rows])
        part.take(avro_type)
        self.position[rows] = part.position
        self.sound[rows] = part.sound


_BOUNDS = {
    "int": (-(1 << 31), (1 << 31) - 1),
    "long": (-(1 << 63), (1 << 63) - 1),
    "timestamp-micros": (TIME_MIN, TIME_MAX),
}
