"""Reading record batches that aiokafka's parser gives up on, though the broker took them.

The broker checks little of a record's inside. A header name that is not UTF-8, or bits set in a record's attributes
byte, make aiokafka raise, at the same offset for ever: one such record would end every worker that reads it. Such a
batch is read again here, by the format alone (https://kafka.apache.org/documentation/#recordbatch).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint
from aiokafka.structs import TopicPartition

_LENGTH = slice(8, 12)
_BEFORE_LENGTH_ENDS = 12
_LOG_APPEND_TIME = 1


class TolerantRecord(NamedTuple):
    """A record with the attributes of aiokafka's. Names of headers that are not UTF-8 are in `surrogateescape` form."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


def parse_leniently() -> None:
    """Make this process's aiokafka consumers read them. A batch costs a microsecond more, a good record little."""
    fetcher.MemoryRecords = TolerantRecords


def unreadable(fetcher: Any, among: Collection[TopicPartition]) -> TopicPartition | None:
    """The one of these partitions whose fetched records have just raised while they were unpacked."""
    for tp, result in fetcher._records.items():
        if tp not in among:  # it may be one that raised earlier, and has stopped
            continue
        iterator = getattr(getattr(result, "_partition_records", None), "_records_iterator", None)
        if iterator is not None and iterator.gi_frame is None:
            assert isinstance(tp, TopicPartition)
            return tp
    return None


class TolerantRecords:
    """The batches of one fetch of one partition, in place of aiokafka's MemoryRecords."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._records = MemoryRecords(data)
        self._at = 0
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> TolerantBatch:
        """The next batch; call it only after `has_next`."""
        start = self._at
        length = int.from_bytes(self._data[start:][_LENGTH], "big")
        self._at = start + _BEFORE_LENGTH_ENDS + length
        return TolerantBatch(self._records.next_batch(), self._data[start : self._at])


class TolerantBatch:
    """A batch of aiokafka's, whose iteration falls back on our reading.

    What aiokafka gave before it gave up comes a second time; its fetcher passes over offsets that it has had.
    """

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
            return
        except (UnicodeDecodeError, CorruptRecordException):
            if self._batch.magic < 2:
                raise
        yield from read_records(self._data)


def read_records(data: memoryview) -> Iterator[TolerantRecord]:
    """The records of a batch of format 2. Raises CorruptRecordException where the bytes don't fit the format."""
    batch = _DefaultRecordBatchPy(data)
    batch._maybe_uncompress()
    content, at = batch._buffer, batch._pos
    try:
        for _ in range(batch._num_records):
            length, at = decode_varint(content, at)
            yield _read(batch, content[at : at + length])
            at += length
    except (ValueError, IndexError) as error:
        raise CorruptRecordException(f"unreadable record in the batch at offset {batch.base_offset}") from error


def _read(batch: Any, record: bytearray) -> TolerantRecord:
    # The first byte holds attributes. None is defined, so it says nothing.
    timestamp_delta, at = decode_varint(record, 1)
    offset_delta, at = decode_varint(record, at)
    key, at = _sized(record, at)
    value, at = _sized(record, at)
    count, at = decode_varint(record, at)
    headers = []
    for _ in range(count):
        name, at = _sized(record, at)
        content, at = _sized(record, at)
        headers.append(((name or b"").decode("utf-8", "surrogateescape"), content))
    if at != len(record):
        raise ValueError("bytes are left over")
    appended = batch.timestamp_type == _LOG_APPEND_TIME
    timestamp = batch.max_timestamp if appended else batch.first_timestamp + timestamp_delta
    return TolerantRecord(batch.base_offset + offset_delta, timestamp, batch.timestamp_type, key, value, headers)


def _sized(record: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(record, at)
    if length < 0:
        return None, at
    if at + length > len(record):
        raise ValueError("a field is longer than its record")
    return bytes(record[at : at + length]), at + length
