"""The strict reader and the scan on single types: what is legal though unusual, what is not, and that both agree."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from uuid import UUID

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.binary import block
from schemas.binary.avro_types import parse
from schemas.binary.reader import TIME_MAX, TIME_MIN, compile_reader, read_long, read_whole, to_datetime
from schemas.binary.row_scan import ITEMS_MAX, valid_rows
from schemas.binary.writer import compile_writer, long_bytes, to_microseconds
from schemas.errors import Undecodable
from tests.support.made_schemas import write

MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def record(type_: Any) -> dict[str, Any]:
    return {"type": "record", "name": "R", "fields": [{"name": "f", "type": type_}]}


def read_both_ways(type_: Any, values: list[bytes]) -> tuple[list[Any], dict[int, str]]:
    """What is read, and why the rest is refused; asserts that both ways agree."""
    reader = block.BlockReader(parse(record(type_)), parse(record(type_)))
    places, frame, refused = reader.read_records(values, 0, numpy.arange(len(values)))
    with patch.object(block, "BLOCK_ROWS_MIN", 1):
        as_block = reader.read(values, 0)
    assert as_block[0].tolist() == places.tolist()
    assert as_block[1].equals(frame)
    assert as_block[2] == refused
    return frame["f"].to_list(), refused


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_survive_their_bytes(number: int) -> None:
    """Every 64-bit number is read back from its shortest form."""
    data = long_bytes(number)
    assert read_long(data, 0, "f") == (number, len(data))


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_their_microseconds(time: datetime) -> None:
    """Every moment that Python knows is kept to the microsecond."""
    assert to_datetime(to_microseconds(time)) == time


@pytest.mark.parametrize(
    ("type_", "value", "reason"),
    [
        ("boolean", b"\x02", "not canonical: a boolean other than 0 and 1 in f"),
        ("int", long_bytes(2**31), "a number of more than 32 bits in f"),
        ("int", long_bytes(2**32 + 2**30), "a number of more than 32 bits in f"),
        ("long", b"\x80\x00", "not canonical: an overlong number in f"),
        ("long", b"\x84\x80\x00", "not canonical: an overlong number in f"),
        ("long", b"\xff" * 9 + b"\x02", "a number of more than 64 bits in f"),
        ("long", b"\xff" * 10 + b"\x01", "a number of more than 64 bits in f"),
        ("long", b"\x80" * 9 + b"\x02", "a number of more than 64 bits in f"),
        ("int", long_bytes(-(2**31) - 1), "a number of more than 32 bits in f"),
        (MICROS, long_bytes(TIME_MIN - 1), "a time outside the years 1 to 9999 in f"),
        (MICROS, long_bytes(TIME_MAX + 1), "a time outside the years 1 to 9999 in f"),
        (MICROS, long_bytes(2**62), "a time outside the years 1 to 9999 in f"),
        ("float", struct.pack("<f", float("nan")), "NaN in f"),
        ("double", struct.pack("<d", float("nan")), "NaN in f"),
        ("double", b"\x00" * 7, "the value ends too early"),
        ("string", b"\x01a", "a negative length in f"),
        ("string", long_bytes(2**62 - 1), "a length beyond the value in f"),
        ("string", b"\x04\xc0\x80", "invalid UTF-8 in f"),
        ("string", b"\x06\xed\xa0\x80", "invalid UTF-8 in f"),
        (["null", "string"], b"\x04", "a union branch that does not exist in f"),
        (["null", "string"], b"\x01\x02a", "a union branch that does not exist in f"),
        (["null", "string"], b"\x82\x00\x02a", "a union branch that does not exist in f"),
        ({"type": "array", "items": "long"}, b"\x02\x02\x01\x02\x02\x00\x00", "unread bytes after the record"),
        ({"type": "array", "items": "long"}, b"\x02\x02", "the value ends too early"),
        ({"type": "array", "items": "long"}, long_bytes(2**62), "an array longer than the value in f"),
        ({"type": "array", "items": "string"}, b"\x02\x02\xff\x00", "invalid UTF-8 in f[]"),
        ({"type": "array", "items": "long"}, b"\x01\x04\x02\x00", "an array block whose size is wrong in f"),
        ({"type": "fixed", "name": "F", "size": 4}, b"abc", "the value ends too early"),
    ],
)
def test_what_no_writer_may_write_is_refused(type_: Any, value: bytes, reason: str) -> None:
    """The malformed row alone is refused, with its reason, whichever way it is read."""
    good = write(record(type_), {"f": _some(type_)})
    read, refused = read_both_ways(type_, [good, value, good])
    assert len(read) == 2
    assert list(refused) == [1]
    assert reason in refused[1]


def _some(type_: Any) -> Any:
    kind = type_ if isinstance(type_, str) else type_["type"] if isinstance(type_, dict) else "null"
    some = {"boolean": True, "string": "x", "null": None, "array": [], "fixed": b"abcd", "float": 0.5, "double": 0.5}
    return some.get(kind, 1)


@pytest.mark.parametrize(
    ("type_", "value", "wanted"),
    [
        ("long", long_bytes(-(2**63)), -(2**63)),
        ("int", long_bytes(2**31 - 1), 2**31 - 1),
        ("int", long_bytes(-(2**31)), -(2**31)),
        (MICROS, long_bytes(TIME_MAX), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
        (MICROS, long_bytes(TIME_MIN), datetime(1, 1, 1, tzinfo=UTC)),
        ("double", struct.pack("<d", float("-inf")), float("-inf")),
        ({"type": "array", "items": "long"}, b"\x01\x02\x02\x02\x04\x00", [1, 2]),
        ({"type": "array", "items": "long"}, b"\x02\x02\x02\x04\x00", [1, 2]),
        ({"type": "array", "items": "boolean"}, b"\x40" + b"\x01" * 32 + b"\x42" + b"\x00" * 33 + b"\x00", None),
        ({"type": "array", "items": "string"}, long_bytes(ITEMS_MAX + 1) + b"\x02a" * (ITEMS_MAX + 1) + b"\x00", None),
    ],
    ids=[
        "ten bytes",
        "largest int",
        "least int",
        "last time",
        "first time",
        "infinity",
        "sized blocks",
        "two blocks",
        "two blocks as long as one",
        "many items",
    ],
)
def test_what_is_legal_though_unusual_is_read(type_: Any, value: bytes, wanted: Any) -> None:
    """What the scan leaves to the strict reader is read like the rest."""
    good = write(record(type_), {"f": _some(type_)})
    read, refused = read_both_ways(type_, [good, value, good])
    assert refused == {}
    assert len(read) == 3
    assert wanted is None or read[1] == wanted


def test_a_scan_finds_what_a_joined_reader_would_shift() -> None:
    """Two values that are whole only when joined are both invalid."""
    avro_type = parse(record("string"))
    lengths = numpy.array([2, 2, 4], dtype=numpy.int64)
    assert valid_rows(avro_type, b"\x06abc\x06abc", lengths).tolist() == [False, False, True]


def test_a_scan_never_goes_back() -> None:
    """A negative length would put the cursor on bytes that were scanned before, and let the row end where it should."""
    fields = [{"name": "a", "type": "string"}, {"name": "b", "type": {"type": "fixed", "name": "F", "size": 2}}]
    avro_type = parse({"type": "record", "name": "R", "fields": fields})
    lengths = numpy.array([2, 3], dtype=numpy.int64)
    assert valid_rows(avro_type, b"\x01\x00\x00ab", lengths).tolist() == [False, True]


def test_a_scan_of_nothing_is_empty() -> None:
    """No rows, no verdicts."""
    avro_type = parse(record({"type": "array", "items": "string"}))
    assert valid_rows(avro_type, b"", numpy.array([], dtype=numpy.int64)).tolist() == []


def test_values_that_no_avro_type_holds_are_not_written() -> None:
    """NaN and numbers of more than 64 bits are refused by field; the rest is written."""
    fields = [{"name": "d", "type": "double"}, {"name": "b", "type": "bytes"}, {"name": "n", "type": "long"}]
    schema: Any = {"type": "record", "name": "R", "fields": fields}
    write_record = compile_writer(parse(schema))
    values = {"d": 0.5, "b": b"\x00\xff", "n": -3}
    assert write_record(values) == write(schema, values)
    with pytest.raises(ValueError, match="NaN in d"):
        write_record({"d": float("nan"), "b": b"", "n": 0})
    for number in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="a number of more than 64 bits in n"):
            write_record({"d": 0.0, "b": b"", "n": number})


@pytest.mark.parametrize("bits", range(64))
def test_numbers_next_to_each_power_of_two_are_written_as_fastavro_writes_them(bits: int) -> None:
    """The shortest form has its next byte exactly where it needs one."""
    for number in {2**bits - 1, -(2**bits), 2**bits if bits < 63 else 0}:
        assert long_bytes(number) == write(record("long"), {"f": number})


def test_a_fixed_of_sixteen_bytes_is_written_from_a_uuid() -> None:
    """UUIDs are their 16 bytes, first byte first."""
    write_uuid = compile_writer(parse(record({"type": "fixed", "name": "F", "size": 16})))
    assert write_uuid({"f": UUID(int=1)}) == bytes(15) + b"\x01"


def test_the_reader_stops_at_the_first_thing_that_is_wrong() -> None:
    """Reading strictly raises and returns no half of a record."""
    with pytest.raises(Undecodable, match="ends too early"):
        read_whole(compile_reader(parse(record("long")), parse(record("long"))), b"\x80", 0)
