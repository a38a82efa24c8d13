"""A lenient parser of record batches, for those that aiokafka's own rejects though the broker took them.

The broker checks little of a record's inside. A header name that is not UTF-8, or bits set in a record's attributes
byte, make aiokafka raise, at the same offset each time: one such record would end every worker that reads it. Such a
batch is read again here, by the format alone (https://kafka.apache.org/documentation/#recordbatch). Offsets that
records say of themselves are not believed: the broker has numbered them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records
from aiokafka.record.default_records import DefaultRecordBase
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from streams.kafka.batch_scan import BatchContent
from streams.kafka.record_columns import RecordColumns
from streams.kafka.repair import Repair

REPAIR: Final = Repair(
    name="lenient records",
    needed_by="aiokafka 0.14.0",
    reason="A header name that is not UTF-8, or bits set in a record's attributes byte, make the parser raise, though"
    " brokers take such records; every consumer would stop at that offset. It believes the offset that a record says of"
    " itself, which brokers do not check.",
    until="aiokafka reads them: header names as bytes, attributes ignored, and offsets as brokers count them.",
    touches=(
        "aiokafka.consumer.fetcher:MemoryRecords",
        "aiokafka.record.memory_records:MemoryRecords.has_next()",
        "aiokafka.record.memory_records:MemoryRecords.next_batch()",
        "aiokafka.record.memory_records:MemoryRecords.size_in_bytes()",
        "aiokafka.record.default_records:DefaultRecordBase.CODEC_MASK",
        "aiokafka.record.default_records:DefaultRecordBase.HEADER_STRUCT",
        "aiokafka.record.default_records:DefaultRecordBase.TIMESTAMP_TYPE_MASK",
        "aiokafka.record.default_records:_DefaultRecordBatchPy._buffer",
        "aiokafka.record.default_records:_DefaultRecordBatchPy._maybe_uncompress()",
        "aiokafka.record.default_records:_DefaultRecordBatchPy._num_records",
        "aiokafka.record.default_records:_DefaultRecordBatchPy._pos",
        "aiokafka.record.default_records:_DefaultRecordBatchPy.base_offset",
        "aiokafka.record.default_records:_DefaultRecordBatchPy.first_timestamp",
        "aiokafka.record.default_records:_DefaultRecordBatchPy.next_offset",
        "aiokafka.record.default_records:_DefaultRecordBatchPy.max_timestamp",
        "aiokafka.record.default_records:_DefaultRecordBatchPy.timestamp_type",
    ),
)

_HEADER = DefaultRecordBase.HEADER_STRUCT
_LENGTH = slice(8, 12)
_LENGTH_END = 12
_LOG_APPEND_TIME = 1


class LenientRecord(NamedTuple):
    """A record with the attributes of aiokafka's. Names of headers that are not UTF-8 are in `surrogateescape` form."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


def parse_leniently() -> None:
    """Make this process's aiokafka consumers read them. It costs a microsecond a batch, and little a record."""
    fetcher.MemoryRecords = LenientRecords


class LenientRecords:
    """The batches of one fetch of one partition, in place of aiokafka's MemoryRecords."""

    in_columns = False
    """Whether each batch yields itself as one item, a ColumnBatch, or a RecordColumns where it can't be read later."""

    with_headers = True
    """Whether these have bytes for the headers."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._records = MemoryRecords(data)
        self._at = 0
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> LenientBatch:
        """Return the next batch; call this only after `has_next`."""
        start = self._at
        length = int.from_bytes(self._data[start:][_LENGTH], "big")
        self._at = start + _LENGTH_END + length
        batch, data = self._records.next_batch(), self._data[start : self._at]
        return ColumnBatch(batch, data, self.with_headers) if self.in_columns else LenientBatch(batch, data)


class LenientBatch:
    """A batch of aiokafka's, whose iteration falls back on `read_records`.

    Records that aiokafka yielded before it raised come a second time; its fetcher skips offsets that it has had.
    """

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        if self._batch.magic < 2:
            yield from self._batch
            return
        offsets = self._offsets()
        try:
            yield from _numbered(self._batch, offsets)
            return
        except (UnicodeDecodeError, CorruptRecordException):
            pass
        yield from _numbered(read_records(self._data), offsets)

    def _offsets(self) -> range | None:
        """Return the offsets of its records; None where compaction has left fewer than it had.

        Brokers take a batch with as many records as offsets, and no other, but do not look at the offsets that records
        say of themselves, unless it is compressed: a second record of one offset, or one far behind the batch.
        """
        offsets = range(self._batch.base_offset, self._batch.next_offset)
        return offsets if len(offsets) == _HEADER.unpack_from(self._data)[-1] else None


class ColumnBatch(LenientBatch):
    """A batch that yields itself as one item, to be read into columns later, or together with others.

    One of an old format yields its columns at once; one without records yields nothing.
    """

    def __init__(self, batch: Any, data: memoryview, with_headers: bool) -> None:
        super().__init__(batch, data)
        self.with_headers = with_headers
        self.count = 0
        """How many records it says that it has, once it has yielded itself."""

    @property
    def offset(self) -> int:
        """The last offset that is the batch's, whether or not a record has it."""
        last: int = self._batch.next_offset - 1
        return last

    def __iter__(self) -> Iterator[Any]:
        if self._batch.magic >= 2:
            self.count = max(0, _HEADER.unpack_from(self._data)[-1])
        if self.count:
            yield self
        elif columns := self.columns():
            yield columns

    def columns(self) -> RecordColumns:
        """Return its records, read one by one."""
        if self._batch.magic < 2:
            return RecordColumns.of(self._batch, with_headers=self.with_headers)
        try:
            columns = RecordColumns.of(self._batch, with_headers=self.with_headers)
        except (UnicodeDecodeError, CorruptRecordException):
            columns = RecordColumns.of(read_records(self._data), with_headers=self.with_headers)
        if (offsets := self._offsets()) is not None:
            columns.offsets[:] = offsets
        elif not _ascend(columns.offsets, self._batch.base_offset, self._batch.next_offset):
            raise CorruptRecordException(f"the batch at offset {self._batch.base_offset} has records out of order")
        return columns

    def content(self) -> BatchContent:
        """Return its records as bytes. Raises what the library raises that decompresses them."""
        base_offset, *_, attributes, last_delta, first_ms, max_ms, _, _, _, count = _HEADER.unpack_from(self._data)
        content = self._data[_HEADER.size :]
        if attributes & DefaultRecordBase.CODEC_MASK:
            batch = default_records._DefaultRecordBatchPy(self._data)
            batch._maybe_uncompress()
            content = memoryview(batch._buffer)[batch._pos :]
        append_time_ms = max_ms if attributes & DefaultRecordBase.TIMESTAMP_TYPE_MASK else None
        return BatchContent(content, count, base_offset, last_delta, first_ms, append_time_ms)


def _numbered(records: Iterable[Any], offsets: range | None) -> Iterator[Any]:
    """Yield records, with these offsets where they say others."""
    if offsets is None:
        yield from records
        return
    for record, offset in zip(records, offsets, strict=False):  # one of a batch that has no more ends by itself
        if record.offset == offset:
            yield record
        else:
            yield LenientRecord(
                offset, record.timestamp, record.timestamp_type, record.key, record.value, list(record.headers)
            )


def _ascend(offsets: Sequence[int], first: int, end: int) -> bool:
    """Return whether offsets ascend from `first` on, below `end`."""
    return all(before < after for before, after in pairwise([first - 1, *offsets, end]))


def read_records(data: memoryview) -> Iterator[LenientRecord]:
    """Yield the records of a batch of format 2. Raises CorruptRecordException where the bytes don't fit the format."""
    batch = default_records._DefaultRecordBatchPy(data)
    batch._maybe_uncompress()
    content, at = batch._buffer, batch._pos
    try:
        for _ in range(batch._num_records):
            length, at = decode_varint(content, at)
            yield _read(batch, content[at : at + length])
            at += length
    except (ValueError, IndexError) as error:
        raise CorruptRecordException(f"unreadable record in the batch at offset {batch.base_offset}") from error


def _read(batch: Any, record: bytearray) -> LenientRecord:
    # The first byte holds attributes, and Kafka defines none.
    timestamp_delta, at = decode_varint(record, 1)
    offset_delta, at = decode_varint(record, at)
    key, at = _field(record, at)
    value, at = _field(record, at)
    count, at = decode_varint(record, at)
    headers = []
    for _ in range(count):
        name, at = _field(record, at)
        content, at = _field(record, at)
        headers.append(((name or b"").decode("utf-8", "surrogateescape"), content))
    if at != len(record):
        raise ValueError("bytes are left over")
    appended = batch.timestamp_type == _LOG_APPEND_TIME
    timestamp = batch.max_timestamp if appended else batch.first_timestamp + timestamp_delta
    return LenientRecord(batch.base_offset + offset_delta, timestamp, batch.timestamp_type, key, value, headers)


def _field(record: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(record, at)
    if length < 0:
        return None, at
    if at + length > len(record):
        raise ValueError("a field is longer than its record")
    return bytes(record[at : at + length]), at + length
