"""Batches of one fetch, scanned together: the records and errors that reading them one by one gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka import fetched_columns
from streams.kafka.batch_scan import BatchContent, scan_records
from streams.kafka.fetched_columns import SCANNED_MIN, FetchedColumns
from streams.kafka.lenient_records import LenientRecords, read_records
from streams.kafka.record_columns import RecordColumns
from tests.support.raw_records import RawRecord, record_batch

_ATTRIBUTES_AT = 22
_LOG_APPEND_TIME_BIT = 8
_LAST_DELTA_AT = 26
_COUNT_AT = 60
_CONTENT_AT = 61
GOOD = RawRecord(b"key", b"value", [(b"a", b"1")])
BYTES = st.binary(max_size=20)
Row = tuple[int, int, bytes | None, bytes | None, bytes]


@dataclass(frozen=True)
class Shape:
    """A batch of so many records, whose offsets are `step` apart, as a client writes it; then bytes are changed."""

    records: int
    step: int
    gap: int
    """Offsets before it that no record has."""
    codec: int
    append_time: bool
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    changes: list[tuple[int, int]]
    """Where from the end, and to which byte."""

    def bytes_at(self, base_offset: int) -> bytes:
        builder = DefaultRecordBatchBuilder(2, self.codec, 0, -1, -1, -1, 1 << 20)
        for number in range(self.records):
            value = self.value and self.value + b"%d" % number
            builder.append(number * self.step, 1_700_000_000_000 + number**2, self.key, value, self.headers)
        data = bytearray(builder.build())
        data[:8] = base_offset.to_bytes(8, "big")
        if self.append_time:
            data[_ATTRIBUTES_AT] |= _LOG_APPEND_TIME_BIT
        for back, byte in self.changes:
            at = len(data) - 1 - back
            if at >= _CONTENT_AT or at in (_ATTRIBUTES_AT, _COUNT_AT):
                data[at] = byte
        return bytes(data)


SHAPE = st.builds(
    Shape,
    records=st.integers(1, 40),
    step=st.sampled_from([1, 1, 1, 3]),
    gap=st.sampled_from([0, 0, 0, 7]),
    codec=st.sampled_from([0, 0, 0, 1, 3]),
    append_time=st.booleans(),
    key=st.none() | st.just(b"k" * 36) | BYTES,
    value=st.none() | BYTES,
    headers=st.lists(st.tuples(st.text(max_size=4), st.none() | BYTES), max_size=3),
    changes=st.just([]) | st.just([]) | st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=2),
)
WHOLE = SHAPE.map(lambda shape: Shape(**{**vars(shape), "changes": []}))


def fetched(shapes: Sequence[Shape], base_offset: int) -> list[bytes]:
    """Return batches one behind the other."""
    made = []
    for shape in shapes:
        base_offset += shape.gap
        made.append(shape.bytes_at(base_offset))
        base_offset += (shape.records - 1) * shape.step + 1
    return made


def one_by_one(data: bytes, *, with_headers: bool = True) -> RecordColumns:
    """Read a batch record by record, as aiokafka does, or by the format alone."""
    try:
        columns = RecordColumns.of(DefaultRecordBatch(data), with_headers=with_headers)
    except (UnicodeDecodeError, CorruptRecordException):
        columns = RecordColumns.of(read_records(memoryview(data)), with_headers=with_headers)
    batch = DefaultRecordBatch(data)
    own = range(batch.base_offset, batch.next_offset)
    if len(own) == len(columns):
        columns.offsets[:] = own
    elif sorted(set(columns.offsets) & set(own)) != columns.offsets:
        raise CorruptRecordException(f"the batch at offset {batch.base_offset} has records out of order")
    return columns


def rows_one_by_one(batches: Sequence[bytes], position: int = 0, *, with_headers: bool = True) -> tuple[list[Row], str]:
    """Return records from a position on, and what was wrong with the next one; aiokafka drops what ends below it."""
    unpacked_to, rows = position, list[Row]()
    for data in batches:
        try:
            columns = one_by_one(data, with_headers=with_headers)
        except Exception as error:
            return rows, repr(error)
        if columns and columns.offset >= unpacked_to:
            later = columns.since(position)
            rows += [later.row(index) for index in range(len(later))]
            position = columns.offset + 1
        unpacked_to = DefaultRecordBatch(data).next_offset
    return rows, ""


def column_batches(data: bytes, with_headers: bool = True) -> Iterator[Any]:
    """Yield what the batches of a fetch yield to who reads columns."""
    records = LenientRecords(data)
    records.in_columns, records.with_headers = True, with_headers
    while records.has_next():
        yield from records.next_batch()


def rows_of(fetched: FetchedColumns) -> list[Row]:
    return [part.row(index) for part in fetched.parts for index in range(len(part))]


def read(batches: Sequence[bytes], position: int = 0, with_headers: bool = True) -> FetchedColumns:
    columns = FetchedColumns(position)
    for batch in column_batches(b"".join(batches), with_headers):
        columns.add(batch)
    columns.read()
    return columns


class Scans:
    """The batches that were scanned together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[BatchContent]] = []
        monkeypatch.setattr(fetched_columns, "scan_records", self._scan)

    def _scan(self, batches: Sequence[BatchContent], *, with_headers: bool) -> RecordColumns:
        self.asked.append(list(batches))
        return scan_records(batches, with_headers=with_headers)

    @property
    def counts(self) -> list[list[int]]:
        return [[batch.records for batch in batches] for batches in self.asked]


@pytest.fixture
def always_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched_columns, "SCANNED_MIN", 2)
    monkeypatch.setattr(fetched_columns, "SCANNED_BYTES", 4_000)


@pytest.mark.usefixtures("always_scanned")
@given(st.lists(SHAPE, min_size=1, max_size=8), st.integers(0, 2**40), st.integers(0, 39))
def test_records_and_errors_are_those_of_reading_one_by_one(shapes: list[Shape], base: int, behind: int) -> None:
    """Of batches with gaps and any times, compressed or not, with damaged ones among them."""
    data, position = fetched(shapes, base), base + min(behind, shapes[0].records - 1)
    columns, failure = FetchedColumns(position), ""
    for batch in column_batches(b"".join(data)):
        columns.add(batch)
    try:
        columns.read()
    except Exception as error:
        failure = repr(error)
    expected, expected_failure = rows_one_by_one(data, position)
    assert (rows_of(columns), failure) == (expected, expected_failure)
    assert columns.records == len(expected)


@pytest.mark.usefixtures("always_scanned")
@given(st.lists(WHOLE, min_size=1, max_size=8), st.integers(0, 39))
def test_without_headers_the_other_columns_are_the_same(shapes: list[Shape], behind: int) -> None:
    """Nothing stands for the headers."""
    data, position = fetched(shapes, 0), min(behind, shapes[0].records - 1)
    assert (rows_of(read(data, position, False)), "") == rows_one_by_one(data, position, with_headers=False)


def batches(*counts: int) -> list[bytes]:
    """Return batches of so many records, one behind the other."""
    made, offset = [], 0
    for count in counts:
        made.append(record_batch([GOOD] * count, base_offset=offset))
        offset += count
    return made


@pytest.mark.parametrize("deltas", [(0, 0, 1), (0, 5, 2), (2, 1, 0), (0, 1, -1), (7, 8, 9)])
def test_records_have_the_offsets_that_the_broker_gave_them(deltas: tuple[int, ...]) -> None:
    """Whatever they say, which brokers do not look at: none is lost, there or in the batches around."""
    strange = [RawRecord(b"k", b"%d" % number, offset_delta=delta) for number, delta in enumerate(deltas)]
    data = [*batches(200), record_batch(strange, base_offset=200), *batches(203, 200)[1:]]
    rows = rows_of(read(data))
    assert [row[0] for row in rows] == list(range(403))
    assert [row[3] for row in rows[200:203]] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("deltas", [(0, 0, 1), (0, 5, 2), (1, 2, 9), (-1, 2, 3)])
def test_records_out_of_order_in_a_compacted_batch_are_corrupt(deltas: tuple[int, ...]) -> None:
    """Which offset was whose is not known any more."""
    strange = [RawRecord(b"k", b"v", offset_delta=delta) for delta in deltas]
    data = bytearray(record_batch(strange, base_offset=200))
    data[_LAST_DELTA_AT] = 7
    with pytest.raises(CorruptRecordException, match="at offset 200"):
        read([bytes(data)])


@pytest.mark.parametrize(("last", "scanned"), [(199, []), (200, [[60, 40, 200]])])
def test_small_batches_are_scanned_together_where_they_are_enough(
    last: int, scanned: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer records are read one by one in the time of a scan."""
    assert SCANNED_MIN == 300
    scans = Scans(monkeypatch)
    data = batches(60, 40, last)
    assert (rows_of(read(data)), "") == rows_one_by_one(data)
    assert scans.counts == scanned


def test_a_batch_that_does_not_fit_costs_its_neighbours_no_more_than_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read by itself, and what is before and behind it is scanned."""
    scans = Scans(monkeypatch)
    data = batches(200, 200, 50, 300, 10)
    data[2] = record_batch([RawRecord(b"k", b"v", attributes=1)] * 50, base_offset=400)
    assert (rows_of(read(data)), "") == rows_one_by_one(data)
    assert scans.counts == [[200, 200, 50, 300, 10], [200, 200], [300, 10]]


def test_batches_that_do_not_fit_are_scanned_no_more_than_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes a batch that shows only by itself makes no more work than that."""
    scans = Scans(monkeypatch)
    data = batches(*[400] * 9)
    for number in range(1, 9, 2):
        length = bytearray(data[number])
        length[_COUNT_AT] -= number  # the scan of what is before it ends with the first one
        data[number] = bytes(length)
    assert (rows_of(read(data)), "") == rows_one_by_one(data)
    assert [len(counts) for counts in scans.counts] == [9, 1, 7]


def test_a_scan_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is in batches, however small it was when it was compressed."""
    scans = Scans(monkeypatch)
    monkeypatch.setattr(fetched_columns, "SCANNED_BYTES", 200_000)
    shape = Shape(400, 1, 0, 1, False, b"k", b"v" * 200, [], [])
    data = fetched([shape] * 6, 0)
    assert (rows_of(read(data)), "") == rows_one_by_one(data)
    assert sum(map(len, data)) < 200_000
    assert scans.counts == [[400] * 3] * 2
