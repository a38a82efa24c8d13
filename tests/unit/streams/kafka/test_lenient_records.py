"""Record batches that aiokafka's parser gives up on, read by the format alone."""

from __future__ import annotations

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.lenient_records import ColumnBatch, LenientRecords, read_records
from streams.kafka.record_columns import RecordColumns
from tests.support.raw_records import RawRecord, record_batch

BYTES = st.binary(max_size=20)
RECORDS = st.lists(
    st.builds(
        RawRecord,
        key=st.none() | BYTES,
        value=st.none() | BYTES,
        headers=st.lists(st.tuples(BYTES, st.none() | BYTES), max_size=4),
        attributes=st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)
MALFORMED = RawRecord(b"k", b"v", [(b"caf\xe9", b"1")])


def as_given(headers: list[tuple[str, bytes | None]]) -> list[tuple[bytes, bytes | None]]:
    return [(name.encode("utf-8", "surrogateescape"), value) for name, value in headers]


@given(RECORDS)
def test_every_record_comes_back_as_it_was_written(records: list[RawRecord]) -> None:
    """Keys, values, header names of any bytes, nulls, whatever the attributes say."""
    found = list(read_records(memoryview(record_batch(records))))
    assert [(each.key, each.value, as_given(each.headers)) for each in found] == [
        (each.key, each.value, list(each.headers)) for each in records
    ]
    assert [each.offset for each in found] == list(range(len(records)))


def test_a_good_batch_is_read_by_aiokafka_itself() -> None:
    """The records are those of aiokafka's own reader, and the next batch follows."""
    data = record_batch([RawRecord(b"k", b"v", [(b"a", b"1")]), RawRecord(None, None)])
    ours, theirs = LenientRecords(data + data), MemoryRecords(data)
    for _ in range(2):
        assert ours.has_next()
        found = [(r.offset, r.key, r.value, r.headers) for r in ours.next_batch()]
        assert found == [(0, b"k", b"v", [("a", b"1")]), (1, None, None, [])]
    assert not ours.has_next()
    assert [(r.offset, r.key) for r in theirs.next_batch()] == [(0, b"k"), (1, None)]


@pytest.mark.parametrize("strange", [(), (MALFORMED,)], ids=["read by aiokafka", "read again"])
def test_records_have_the_offsets_that_the_broker_gave_them(strange: tuple[RawRecord, ...]) -> None:
    """Whatever they say of themselves: twice the same, or one behind the batch."""
    said = [RawRecord(b"%d" % delta, b"v", [(b"a", b"1")], offset_delta=delta) for delta in (0, 0, 9)]
    (batch,) = [LenientRecords(record_batch([*said, *strange], base_offset=40)).next_batch()]
    found = {r.offset: (r.key, r.headers) for r in batch}
    wanted = [(each.key, [(name.decode("utf-8", "surrogateescape"), v) for name, v in each.headers])
              for each in (*said, *strange)]  # fmt: skip
    assert found == dict(enumerate(wanted, 40))


def test_a_malformed_record_costs_the_others_nothing() -> None:
    """Those before it may come twice, for the caller drops offsets that it has had; none is missing."""
    data = record_batch([RawRecord(b"0", b"v"), MALFORMED, RawRecord(b"2", b"v")])
    with pytest.raises(UnicodeDecodeError):
        list(MemoryRecords(data).next_batch())
    batch = LenientRecords(data).next_batch()
    assert [record.key for record in batch][-3:] == [b"0", b"k", b"2"]
    assert batch.base_offset == 0


def columns_of(data: bytes) -> list[RecordColumns]:
    """Return the columns of what the batches of a fetch yield."""
    records, found = LenientRecords(data), list[ColumnBatch]()
    records.in_columns = True
    while records.has_next():
        found += list(records.next_batch())
    return [each.columns() for each in found]


def test_a_batch_in_columns_yields_itself_as_one_item() -> None:
    """Each record once, also where aiokafka's parser gives up halfway."""
    good = record_batch([RawRecord(b"k", b"v", [(b"a", b"1")])])
    data = record_batch([RawRecord(b"0", b"v"), MALFORMED, RawRecord(b"2", b"v")])
    first, second = columns_of(good + data)
    assert first == RecordColumns.of(MemoryRecords(good).next_batch())
    assert second == RecordColumns.of(read_records(memoryview(data)))
    assert second.keys == [b"0", b"k", b"2"]


def test_a_batch_without_records_yields_nothing_and_a_corrupt_one_is_an_error() -> None:
    """Compaction leaves the first; the second stops the partition."""
    assert columns_of(record_batch([])) == []
    data = bytearray(record_batch([RawRecord(b"k", b"v")]))
    data[-1] = 0x7E
    with pytest.raises(CorruptRecordException):
        columns_of(bytes(data))


def test_compressed_batches_are_read_too() -> None:
    """What is inside a compressed batch is the same."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=2, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=10_000,
    )  # fmt: skip
    builder.append(0, timestamp=7, key=b"k", value=b"v" * 500, headers=[("a", b"1")])
    (record,) = read_records(memoryview(builder.build()))
    assert (record.key, record.value, record.headers, record.timestamp) == (b"k", b"v" * 500, [("a", b"1")], 7)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_bytes_that_do_not_fit_the_format_are_an_error(cut: int) -> None:
    """A batch that ends too early, or a field longer than its record, is said to be corrupt; nothing is made up."""
    data = record_batch([MALFORMED])
    with pytest.raises(CorruptRecordException):
        list(read_records(memoryview(data[:-cut])))
    key_length = data.rindex(b"k") - 1
    longer = data[:key_length] + b"\x7e" + data[key_length + 1 :]
    with pytest.raises(CorruptRecordException):
        list(read_records(memoryview(longer)))
