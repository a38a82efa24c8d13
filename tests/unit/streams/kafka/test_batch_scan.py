"""A scan of a batch gives what reading it record by record gives, or leaves the batch to that."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.batch_scan import LAYOUTS_MAX, BatchContent, NotScanned, scan_records
from streams.kafka.lenient_records import ColumnBatch, read_records
from streams.kafka.record_columns import RecordColumns
from tests.support.raw_records import RawRecord, record_batch

TEXT = st.text(max_size=8).map(str.encode)
LONG = st.binary(max_size=300)
RECORD = st.builds(
    RawRecord,
    key=st.none() | st.just(b"k" * 36) | LONG,
    value=st.none() | LONG,
    headers=st.lists(st.tuples(TEXT | st.binary(max_size=3), st.none() | LONG), max_size=4),
)
GOOD = RawRecord(b"key", b"value", [(b"ce_id", b"1"), (b"ce_type", None)])
_CONTENT_AT = 61
_LAST_DELTA_AT = 26
COUNT = 64
_HEADERS_AT = 15
_ATTRIBUTES_AT = 21
_LOG_APPEND_TIME_BIT = 8


def content_of(data: bytes) -> BatchContent:
    return ColumnBatch(None, memoryview(data), with_headers=True).content()


def scanned(*data: bytes, with_headers: bool = True) -> RecordColumns:
    return scan_records([content_of(each) for each in data], with_headers=with_headers)


def one_by_one(data: bytes) -> RecordColumns:
    return RecordColumns.of(read_records(memoryview(data)))


def many(records: Sequence[RawRecord], count: int = 2 * COUNT) -> list[RawRecord]:
    """Return so many records, by turns, each with a value of its own."""
    return [
        replace(record, value=record.value and record.value + b"%d" % number)
        for number, record in enumerate(islice(cycle(records), count))
    ]


@given(st.lists(RECORD, min_size=1, max_size=LAYOUTS_MAX), st.integers(0, 2**40))
def test_records_are_those_that_reading_gives(records: list[RawRecord], base_offset: int) -> None:
    """Null and empty keys, values and headers, header names of any bytes, all lengths."""
    data = record_batch(many(records), base_offset=base_offset)
    whole = one_by_one(data)
    assert scanned(data) == whole
    assert scanned(data, with_headers=False) == replace(whole, headers=[b""] * len(whole))


@given(st.lists(RECORD, min_size=1, max_size=3), st.data())
def test_bytes_that_fit_no_format_are_left_to_who_says_so(records: list[RawRecord], drawn: st.DataObject) -> None:
    """With some bytes changed, lost or added it is never anything else than what reading gives."""
    data = bytearray(record_batch(many(records, COUNT)))
    for _ in range(drawn.draw(st.integers(1, 3))):
        at = drawn.draw(st.integers(_CONTENT_AT, len(data) - 1))
        data[at : at + drawn.draw(st.integers(0, 2))] = drawn.draw(st.binary(max_size=2))
    try:
        columns = scanned(bytes(data))
    except NotScanned:
        return
    assert columns == one_by_one(bytes(data))


@pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
def test_times_are_those_of_records_or_of_the_broker(codec: int) -> None:
    """Compressed or not, as a client of aiokafka's wrote them."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for number in range(COUNT):
        builder.append(number, 1_700_000_000_000 + number * number, b"k", b"v" * number, [("a", b"1")])
    data = bytearray(builder.build())
    assert scanned(bytes(data)) == one_by_one(bytes(data))
    assert len(set(scanned(bytes(data)).timestamps_ms)) == COUNT
    data[_ATTRIBUTES_AT + 1] |= _LOG_APPEND_TIME_BIT
    assert scanned(bytes(data)) == one_by_one(bytes(data))
    assert len(set(scanned(bytes(data)).timestamps_ms)) == 1


@pytest.mark.parametrize("size", [5, 100])
def test_a_batch_whose_records_have_attributes_is_left_to_who_reads_them_one_by_one(size: int) -> None:
    """Clients write none. They follow a length of one byte, or of more."""
    records = [*many([GOOD]), replace(GOOD, value=b"v" * size, attributes=1)]
    data = record_batch(records)
    with pytest.raises(NotScanned):
        scanned(data)
    assert len(one_by_one(data)) == len(records)


@pytest.mark.parametrize("kinds", [LAYOUTS_MAX, LAYOUTS_MAX + 1, COUNT])
def test_headers_of_many_kinds_are_scanned(kinds: int) -> None:
    """One for each type of events, say; those that are left are written one by one."""
    data = record_batch(many([replace(GOOD, headers=[(b"h%d" % kind, b"v" * kind)]) for kind in range(kinds)]))
    assert scanned(data) == one_by_one(data)


def test_headers_that_do_not_fit_the_format_are_found_behind_those_of_many_kinds() -> None:
    """Where they are written one by one."""
    records = [replace(GOOD, headers=[(b"h%d" % kind, b"v" * kind)]) for kind in range(LAYOUTS_MAX)]
    data = bytearray(record_batch([*records, replace(GOOD, headers=[(b"last", b"v")])]))
    data[-1 - len(b"v")] += 2
    with pytest.raises(NotScanned):
        scanned(bytes(data))


@pytest.mark.parametrize("wrong", ["attributes", "value", "header", "offsets", "count", "cut", "below", "within"])
def test_the_batches_that_do_not_fit_are_named(wrong: str) -> None:
    """The others can be scanned without them."""
    count = 10
    data = [bytearray(record_batch(many([GOOD], count), base_offset=number * count)) for number in range(4)]
    match wrong:
        case "attributes":
            data[2][_CONTENT_AT + 1] = 1
        case "value":
            data[2][_CONTENT_AT + 8] = 0x7E
        case "header":
            data[2][_CONTENT_AT + _HEADERS_AT] = 6
        case "offsets":
            data[2][_CONTENT_AT + 3] = 2
        case "count":
            data[2][_CONTENT_AT - 1] += 1
        case "cut":
            data[2].pop()
        case "below":
            data[2][7] -= 1
        case _:
            data[1][_LAST_DELTA_AT] += 1
    with pytest.raises(NotScanned) as raised:
        scanned(*map(bytes, data))
    assert raised.value.batches == {2}
    del data[2]
    assert scanned(*map(bytes, data)) == RecordColumns.joined([one_by_one(bytes(each)) for each in data])


@pytest.mark.parametrize("deltas", [[0, 1, 1], [0, 2, 1], [0, 1, 3], [-1, 1, 2]])
def test_offsets_ascend_within_those_of_the_batch(deltas: list[int]) -> None:
    """Whoever writes to the topic may send others."""
    data = bytearray(record_batch([RawRecord(b"k", b"v")] * len(deltas)))
    size = (len(data) - _CONTENT_AT) // len(deltas)
    for number, delta in enumerate(deltas):
        data[_CONTENT_AT + number * size + 3] = delta * 2 if delta >= 0 else -delta * 2 - 1
    assert one_by_one(bytes(data)).offsets == deltas
    with pytest.raises(NotScanned):
        scanned(bytes(data))


def test_one_record_with_long_headers_takes_no_memory_for_the_others() -> None:
    """Whoever writes to the topic may send it."""
    long = replace(GOOD, headers=[(b"h", b"v" * 500_000)])
    data = record_batch([long, *many([GOOD], 2_000)])
    content = content_of(data)
    tracemalloc.start()
    try:
        scan_records([content], with_headers=True)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 * len(data)


@pytest.mark.parametrize(
    ("at", "byte"),
    [(0, 1), (0, 65), (0, 62), (0, 66), (4, 3), (4, 126), (8, 3), (8, 126), (15, 1), (15, 2), (15, 6), (16, 1),
     (16, 126), (22, 3), (22, 126)],
    ids=["negative length", "as long and negative", "short length", "long length", "negative key", "long key",
         "negative value", "long value", "negative count", "low count", "high count", "negative name", "long name",
         "negative header", "long header"],
)  # fmt: skip
def test_a_record_that_does_not_fit_the_format_is_not_scanned(at: int, byte: int) -> None:
    """Its length, or one of those within it; who reads it says that it is corrupt."""
    data = bytearray(record_batch(many([GOOD])))
    assert data[_CONTENT_AT:].startswith(b"\x40\0\0\0\x06key\x0cvalue0\x04\x0ace_id\x021\x0ece_type\x01")
    data[_CONTENT_AT + at] = byte
    for with_headers in {True, at >= _HEADERS_AT}:
        with pytest.raises(NotScanned):
            scanned(bytes(data), with_headers=with_headers)
    with pytest.raises(CorruptRecordException):
        one_by_one(bytes(data))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"], ids=["short", "long"])
def test_a_batch_that_does_not_end_with_its_last_record_is_not_scanned(change: Callable[[bytes], bytes]) -> None:
    """Neither one that is cut off, nor one with bytes left over."""
    with pytest.raises(NotScanned):
        scanned(change(record_batch(many([GOOD]))))


@pytest.mark.parametrize("size", [63, 64, 8_191, 8_192, 1_100_000])
def test_records_of_every_size_are_found(size: int) -> None:
    """The length of a record takes one byte, or two, or more."""
    data = record_batch([replace(GOOD, value=b"v" * size), *many([RawRecord(None, None)])])
    assert scanned(data) == one_by_one(data)
