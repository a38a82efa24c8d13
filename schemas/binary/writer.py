"""The writer of Avro binary: numbers in their shortest form, an array as one block.

`compile_writer` turns an Avro type into a function once; that function returns one value's bytes at each call.
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

Write: TypeAlias = Callable[[Any], bytes]
"""Returns a value's bytes. Raises ValueError for a value that its Avro type can't hold."""

FieldsOf: TypeAlias = Callable[..., Callable[[Any], Any]]
"""`itemgetter` or `attrgetter`: called with field names, it returns a function that gets their values from a record."""

_SHORT = tuple(bytes([number]) for number in range(0x80))

_PAIRS = tuple(bytes([number & 0x7F | 0x80, number >> 7 | 0x80]) for number in range(0x4000))
"""The two bytes for each 14 bits of a varint that more bytes follow."""

_LAST_PAIRS = tuple(bytes([number & 0x7F | 0x80, number >> 7]) for number in range(0x4000))
"""The two bytes for its last 14 bits; of fewer than 128 the second one would be too many."""

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
            return _uuid_bytes
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
    if 1 << 49 <= zigzag < 1 << 56:  # as times from 1979 to 3111 are: eight bytes without a loop
        return (
            _PAIRS[zigzag & 0x3FFF]
            + _PAIRS[zigzag >> 14 & 0x3FFF]
            + _PAIRS[zigzag >> 28 & 0x3FFF]
            + _LAST_PAIRS[zigzag >> 42]
        )
    out = b""
    while zigzag >= 0x4000:
        out += _PAIRS[zigzag & 0x3FFF]
        zigzag >>= 14
    return out + (_SHORT[zigzag] if zigzag < 0x80 else _LAST_PAIRS[zigzag])


def to_microseconds(time: datetime) -> int:
    """Return the microseconds since 1970; raises ValueError outside the years 1 to 9999 in UTC."""
    number = (time - UNIX_EPOCH) // _MICROSECOND
    if not TIME_MIN <= number <= TIME_MAX:
        raise ValueError("a time outside the years 1 to 9999")
    return number


def _checked_long_bytes(number: int) -> bytes:
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("a number of more than 64 bits")
    return long_bytes(number)


def _time_bytes(time: datetime) -> bytes:
    return long_bytes(to_microseconds(time))


def _boolean_byte(value: bool) -> bytes:
    return b"\x01" if value else b"\x00"


def _double_bytes(number: float) -> bytes:
    if number != number:
        raise ValueError("NaN")
    return struct.pack("<d", number)


def _string_bytes(text: str) -> bytes:
    return _with_length(text.encode())


def _with_length(data: bytes) -> bytes:
    return long_bytes(len(data)) + data


def _uuid_bytes(value: UUID) -> bytes:
    return value.int.to_bytes(16, "big")  # as `bytes` does, without a property's call


def _array(write: Write) -> Write:
    def array_bytes(items: Sequence[object]) -> bytes:
        if not items:
            return b"\x00"
        return b"".join([long_bytes(len(items)), *map(write, items), b"\x00"])

    return array_bytes


def _optional(write: Write, null_index: int) -> Write:
    null_byte, item_byte = _SHORT[2 * null_index], _SHORT[2 * (1 - null_index)]

    def optional_bytes(value: object) -> bytes:
        return null_byte if value is None else item_byte + write(value)

    return optional_bytes


def _record(avro_type: Record, fields_of: FieldsOf) -> Write:
    names = [field.name for field in avro_type.fields]
    writes = [compile_writer(field.type, fields_of) for field in avro_type.fields]
    get = fields_of(*names)

    def record_bytes(value: object) -> bytes:
        items = get(value) if len(names) > 1 else (get(value),)
        parts: list[bytes] = []
        try:
            for write, item in zip(writes, items, strict=True):
                parts.append(write(item))
        except ValueError as error:
            raise ValueError(f"{error} in {names[len(parts)]}") from error
        return b"".join(parts)

    return record_bytes


_SCALARS: dict[str, Write] = {
    "boolean": _boolean_byte,
    "long": _checked_long_bytes,
    "timestamp-micros": _time_bytes,
    "double": _double_bytes,
    "string": _string_bytes,
    "bytes": _with_length,
}
