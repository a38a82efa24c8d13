"""The writer of Avro binary: numbers in their shortest form, an array as one block.

`compile_writer` turns an Avro type into a function once; that function appends one value's bytes at each call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, TypeAlias
from uuid import UUID

from schemas.binary.avro_types import Array, AvroType, Fixed, Optional, Record, Scalar
from schemas.binary.reader import TIME_MAX, TIME_MIN, UNIX_EPOCH

Write: TypeAlias = Callable[[bytearray, Any], None]
"""Appends a value's bytes. Raises ValueError for a value that its Avro type can't hold."""

FieldsOf: TypeAlias = Callable[..., Callable[[Any], Any]]
"""`itemgetter` or `attrgetter`: called with field names, it returns a function that gets their values from a record."""

_SHORT = tuple(bytes([number]) for number in range(0x80))

_PAIRS = tuple(bytes([number & 0x7F | 0x80, number >> 7 | 0x80]) for number in range(0x4000))
"""The two bytes for each 14 bits of a varint that more bytes follow. A time takes three such pairs."""

_MICROSECOND = timedelta(microseconds=1)


def compile_writer(avro_type: AvroType, fields_of: FieldsOf = itemgetter) -> Write:
    """Return a function that writes values of this type.

    Its values are plain: UUIDs for fixed, aware datetimes for times, dicts for records. Records are structs where
    `fields_of` is `attrgetter`.
    """
    match avro_type:
        case Scalar(kind=kind):
            return _SCALARS[kind]
        case Fixed():
            return _write_uuid
        case Array(items=items):
            return _array(compile_writer(items, fields_of))
        case Optional(item=item, null_index=null_index):
            return _optional(compile_writer(item, fields_of), null_index)
        case Record():
            return _record(avro_type, fields_of)


def long_bytes(number: int) -> bytes:
    """Return a number as a zigzag varint (Avro 1.12, "Binary encoding").

    >>> long_bytes(-65).hex()
    '8101'
    """
    zigzag = (number << 1) ^ (number >> 63)
    if zigzag < 0x80:
        return _SHORT[zigzag]
    out = b""
    while zigzag >= 0x4000:
        out += _PAIRS[zigzag & 0x3FFF]
        zigzag >>= 14
    if zigzag < 0x80:
        return out + _SHORT[zigzag]
    return out + bytes((zigzag & 0x7F | 0x80, zigzag >> 7))


def to_microseconds(time: datetime) -> int:
    """Return the microseconds since 1970; raises ValueError outside the years 1 to 9999 in UTC."""
    number = (time - UNIX_EPOCH) // _MICROSECOND
    if not TIME_MIN <= number <= TIME_MAX:
        raise ValueError("a time outside the years 1 to 9999")
    return number


def _write_long(out: bytearray, number: int) -> None:
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("a number of more than 64 bits")
    out += long_bytes(number)


def _write_time(out: bytearray, time: datetime) -> None:
    out += long_bytes(to_microseconds(time))


def _write_boolean(out: bytearray, value: bool) -> None:
    out.append(1 if value else 0)


def _write_double(out: bytearray, number: float) -> None:
    if number != number:
        raise ValueError("NaN")
    out += struct.pack("<d", number)


def _write_string(out: bytearray, text: str) -> None:
    _write_bytes(out, text.encode())


def _write_bytes(out: bytearray, data: bytes) -> None:
    out += long_bytes(len(data))
    out += data


def _write_uuid(out: bytearray, value: UUID) -> None:
    out += value.int.to_bytes(16, "big")  # as `bytes` does, without a property's call


def _array(write: Write) -> Write:
    def write_array(out: bytearray, items: Sequence[object]) -> None:
        if items:
            out += long_bytes(len(items))
            for item in items:
                write(out, item)
        out.append(0)

    return write_array


def _optional(write: Write, null_index: int) -> Write:
    null_byte, item_byte = 2 * null_index, 2 * (1 - null_index)

    def write_optional(out: bytearray, value: object) -> None:
        if value is None:
            out.append(null_byte)
        else:
            out.append(item_byte)
            write(out, value)

    return write_optional


def _record(avro_type: Record, fields_of: FieldsOf) -> Write:
    names = [field.name for field in avro_type.fields]
    writes = [compile_writer(field.type, fields_of) for field in avro_type.fields]
    get = fields_of(*names)

    def write_record(out: bytearray, value: object) -> None:
        items = get(value) if len(names) > 1 else (get(value),)
        name = ""
        try:
            for name, write, item in zip(names, writes, items, strict=True):  # noqa: B007 (the error names it)
                write(out, item)
        except ValueError as error:
            raise ValueError(f"{error} in {name}") from error

    return write_record


_SCALARS: dict[str, Write] = {
    "boolean": _write_boolean,
    "long": _write_long,
    "timestamp-micros": _write_time,
    "double": _write_double,
    "string": _write_string,
    "bytes": _write_bytes,
}
