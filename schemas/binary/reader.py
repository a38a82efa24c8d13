"""The strict reader of Avro binary, record by record: no other way of reading accepts more, or less.

It accepts what Avro's specification allows a writer to write: arrays in any number of blocks, with or without sizes. It
refuses overlong numbers, booleans other than 0 and 1, union branches that do not exist, lengths beyond the value,
invalid UTF-8, NaN, and times outside the years 1 to 9999.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeAlias

from schemas.binary.avro_types import ABSENT, Array, AvroType, Field, Fixed, Optional, Record, Scalar
from schemas.errors import Undecodable

Read: TypeAlias = Callable[[bytes, int], tuple[object, int]]
"""Reads a value at a byte index; returns it and the index after it. Raises Undecodable, or IndexError at the end."""
MakeTime: TypeAlias = Callable[[int], object]
"""Makes a time from microseconds since 1970."""

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MIN = -62_135_596_800_000_000
TIME_MAX = 253_402_300_799_999_999
"""Microseconds of the first and the last moment of the years 1 to 9999, which Python and Postgres both know."""


def to_datetime(microseconds: int) -> datetime:
    """Return the aware datetime of microseconds since 1970."""
    return UNIX_EPOCH + timedelta(microseconds=microseconds)


def compile_reader(writer: Record, reader: Record, make_time: MakeTime = int) -> Read:
    """Return a function that reads a record of the writer's schema as a dict in the reader's fields and order.

    The two must have passed the compatibility check. Fixed values stay bytes; times go through `make_time`.
    """
    return _record(writer, reader, "", make_time)


def read_whole(read: Read, value: bytes, start: int) -> object:
    """Read one value that begins at `start` and ends where the bytes end; raises Undecodable."""
    try:
        decoded, position = read(value, start)
    except IndexError:
        raise Undecodable("the value ends too early") from None
    if position < len(value):
        raise Undecodable(f"{len(value) - position} unread bytes after the record")
    return decoded


def read_long(buffer: bytes, position: int, where: str) -> tuple[int, int]:
    """Read a zigzag varint of at most 64 bits in its shortest form."""
    byte = buffer[position]
    position += 1
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), position
    number, shift = byte & 0x7F, 7
    while True:
        byte = buffer[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise Undecodable(f"a number of more than 64 bits in {where}")
    if byte == 0:
        raise Undecodable(f"not canonical: an overlong number in {where}")
    if number >= 1 << 64:
        raise Undecodable(f"a number of more than 64 bits in {where}")
    return (number >> 1) ^ -(number & 1), position


def _compile(writer: AvroType, reader: AvroType, where: str, make_time: MakeTime) -> Read:
    match writer, reader:
        case Scalar(kind=kind), Scalar():
            return _scalar(kind, where, make_time)
        case Fixed(size=size), Fixed():
            return partial(_read_fixed, size)
        case Array(items=items), Array(items=wanted):
            return _array(_compile(items, wanted, f"{where}[]", make_time), where)
        case Optional(item=item, null_index=null_index), Optional(item=wanted):
            return _optional(_compile(item, wanted, where, make_time), null_index, where)
        case Record(), Record():
            return _record(writer, reader, where, make_time)
    raise AssertionError(f"{where}: {writer} can't be read as {reader}")


def _scalar(kind: str, where: str, make_time: MakeTime) -> Read:
    match kind:
        case "boolean":
            return partial(_read_boolean, where)
        case "int":
            return partial(_read_int, where)
        case "long":
            return lambda buffer, position: read_long(buffer, position, where)
        case "timestamp-micros":
            return partial(_read_time, make_time, where)
        case "float":
            return partial(_read_float, struct.Struct("<f"), where)
        case "double":
            return partial(_read_float, struct.Struct("<d"), where)
        case "string":
            return partial(_read_string, where)
        case _:
            return partial(_read_bytes, where)


def _read_boolean(where: str, buffer: bytes, position: int) -> tuple[object, int]:
    byte = buffer[position]
    if byte > 1:
        raise Undecodable(f"not canonical: a boolean other than 0 and 1 in {where}")
    return byte == 1, position + 1


def _read_int(where: str, buffer: bytes, position: int) -> tuple[object, int]:
    number, position = read_long(buffer, position, where)
    if not -(1 << 31) <= number < 1 << 31:
        raise Undecodable(f"a number of more than 32 bits in {where}")
    return number, position


def _read_time(make_time: MakeTime, where: str, buffer: bytes, position: int) -> tuple[object, int]:
    number, position = read_long(buffer, position, where)
    if not TIME_MIN <= number <= TIME_MAX:
        raise Undecodable(f"a time outside the years 1 to 9999 in {where}")
    return make_time(number), position


def _read_float(form: struct.Struct, where: str, buffer: bytes, position: int) -> tuple[object, int]:
    end = position + form.size
    if end > len(buffer):
        raise IndexError
    (number,) = form.unpack_from(buffer, position)
    if math.isnan(number):
        raise Undecodable(f"NaN in {where}")
    return number, end


def _read_fixed(size: int, buffer: bytes, position: int) -> tuple[object, int]:
    end = position + size
    if end > len(buffer):
        raise IndexError
    return buffer[position:end], end


def _read_bytes(where: str, buffer: bytes, position: int) -> tuple[bytes, int]:
    length, position = read_long(buffer, position, where)
    if length < 0:
        raise Undecodable(f"a negative length in {where}")
    end = position + length
    if end > len(buffer):
        raise Undecodable(f"a length beyond the value in {where}")
    return buffer[position:end], end


def _read_string(where: str, buffer: bytes, position: int) -> tuple[object, int]:
    text, position = _read_bytes(where, buffer, position)
    try:
        return text.decode("utf-8"), position
    except UnicodeDecodeError:
        raise Undecodable(f"invalid UTF-8 in {where}") from None


def _optional(read: Read, null_index: int, where: str) -> Read:
    null_byte, item_byte = 2 * null_index, 2 * (1 - null_index)

    def read_optional(buffer: bytes, position: int) -> tuple[object, int]:
        branch = buffer[position]
        if branch == null_byte:
            return None, position + 1
        if branch != item_byte:
            raise Undecodable(f"a union branch that does not exist in {where}")
        return read(buffer, position + 1)

    return read_optional


def _array(read: Read, where: str) -> Read:
    def read_array(buffer: bytes, position: int) -> tuple[object, int]:
        items: list[object] = []
        while True:
            count, position = read_long(buffer, position, where)
            if count == 0:
                return items, position
            end = None
            if count < 0:
                size, position = read_long(buffer, position, where)
                count, end = -count, position + size
            # Every item takes a byte at least: without this a few bytes could ask for endless work.
            if count > len(buffer) - position:
                raise Undecodable(f"an array longer than the value in {where}")
            for _ in range(count):
                item, position = read(buffer, position)
                items.append(item)
            if end is not None and end != position:
                raise Undecodable(f"an array block whose size is wrong in {where}")

    return read_array


def _record(writer: Record, reader: Record, where: str, make_time: MakeTime) -> Read:
    wanted = {field.name: field.type for field in reader.fields}
    steps = [
        _step(field, wanted.get(field.name), f"{where}.{field.name}".lstrip("."), make_time) for field in writer.fields
    ]
    written = {field.name for field in writer.fields}
    missing = {field.name: default_of(field) for field in reader.fields if field.name not in written}
    in_order = tuple(field.name for field in reader.fields)
    same_order = in_order == tuple(field.name for field in writer.fields)

    def read_record(buffer: bytes, position: int) -> tuple[object, int]:
        values: dict[str, object] = {}
        for name, read in steps:
            values[name], position = read(buffer, position)
        if not same_order:
            values = {name: values[name] if name in values else missing[name] for name in in_order}
        return values, position

    return read_record


def _step(field: Field, wanted: AvroType | None, where: str, make_time: MakeTime) -> tuple[str, Read]:
    """Return a field's name and reader; a field that the reader's schema lacks is read as written, and dropped."""
    return field.name, _compile(field.type, field.type if wanted is None else wanted, where, make_time)


def default_of(field: Field) -> object:
    """Return the value of a field that was not written; bytes are Latin-1 text in a schema's JSON."""
    assert field.default is not ABSENT, f"{field.name} has no default"
    return _default(field.type, field.default)


def _default(avro_type: AvroType, default: object) -> object:
    match avro_type:
        case Fixed() | Scalar(kind="bytes"):
            return str(default).encode("latin-1")
        case Array(items=items):
            assert isinstance(default, list)
            return [_default(items, item) for item in default]
        case Optional(item=item, null_index=null_index):
            return None if null_index == 0 else _default(item, default)
        case Record(fields=fields):
            assert isinstance(default, dict)
            return {
                field.name: _default(field.type, default[field.name]) if field.name in default else default_of(field)
                for field in fields
            }
        case _:
            return default
