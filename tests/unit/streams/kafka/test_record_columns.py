"""Records in columns: made from records, cut and joined."""

from __future__ import annotations

from audit.canonical import headers_bytes
from streams.kafka.lenient_records import read_records
from streams.kafka.record_columns import RecordColumns
from tests.support.raw_records import RawRecord, record_batch

COLUMNS = RecordColumns([3, 5, 9], [1, 2, 3], [b"a", None, b"c"], [None, b"b", b"c"], [b"1", b"2", b"3"])


def test_each_attribute_of_a_record_is_a_column() -> None:
    """Headers come in the bytes that the audit chain covers."""
    data = record_batch([RawRecord(b"k", None, [(b"a", b"1")]), RawRecord(None, b"v")], base_offset=7)
    records = list(read_records(memoryview(data)))
    columns = RecordColumns.of(iter(records))
    assert columns.timestamps_ms == [record.timestamp for record in records]
    assert (columns.offsets, columns.keys, columns.values) == ([7, 8], [b"k", None], [None, b"v"])
    assert columns.headers == [headers_bytes([("a", b"1")]), headers_bytes([])]
    assert columns.row(1) == (8, records[1].timestamp, None, b"v", headers_bytes([]))
    assert (len(columns), columns.offset) == (2, 8)


def test_without_headers_the_other_columns_are_the_same() -> None:
    """Nothing stands for the headers of any record, which no record's own bytes are."""
    data = record_batch([RawRecord(b"k", None, [(b"a", b"1")]), RawRecord(None, b"v")], base_offset=7)
    records = list(read_records(memoryview(data)))
    columns, whole = RecordColumns.of(iter(records), with_headers=False), RecordColumns.of(records)
    assert columns._lists()[:-1] == whole._lists()[:-1]
    assert columns.headers == [b"", b""]


def test_columns_are_cut_at_an_offset() -> None:
    """Offsets may have gaps."""
    assert COLUMNS.since(2) is COLUMNS.since(3) is COLUMNS
    later = RecordColumns([5, 9], [2, 3], [None, b"c"], [b"b", b"c"], [b"2", b"3"])
    assert COLUMNS.since(4) == COLUMNS.since(5) == later
    assert not COLUMNS.since(10)


def test_columns_are_joined_in_their_order() -> None:
    """Every column of each."""
    assert RecordColumns.joined([COLUMNS]) is COLUMNS
    cut = RecordColumns(*(column[:1] for column in COLUMNS._lists()))
    assert RecordColumns.joined([COLUMNS.since(10), cut, COLUMNS.since(4)]) == COLUMNS
