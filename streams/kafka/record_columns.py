"""Fetched records in columns, made while Python's objects of each record are still in the processor's cache."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from audit.canonical import headers_bytes


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """Records of one partition side by side, offsets ascending; headers in canonical bytes (`audit/canonical.py`)."""

    offsets: list[int]
    timestamps_ms: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[bytes]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def offset(self) -> int:
        """The last record's offset."""
        return self.offsets[-1]

    @classmethod
    def of(cls, records: Iterable[Any]) -> RecordColumns:
        """Return records that have the attributes of aiokafka's.

        Each is dropped before the next one is made: a list of them, and of their headers, costs half as much again.
        """
        columns = cls([], [], [], [], [])
        offset, timestamp_ms, key, value, headers = columns._appends()
        for record in records:
            offset(record.offset)
            timestamp_ms(record.timestamp)
            key(record.key)
            value(record.value)
            headers(headers_bytes(record.headers))
        return columns

    @classmethod
    def without_headers(cls, records: Iterable[Any]) -> RecordColumns:
        """Return records as :meth:`of` does, in half of the time: no bytes for the headers of any."""
        columns = cls([], [], [], [], [])
        offset, timestamp_ms, key, value, _ = columns._appends()
        for record in records:
            offset(record.offset)
            timestamp_ms(record.timestamp)
            key(record.key)
            value(record.value)
        columns.headers.extend([b""] * len(columns))
        return columns

    @classmethod
    def joined(cls, parts: Sequence[RecordColumns]) -> RecordColumns:
        """Return the records of one or more in their order."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(each._lists() for each in parts), strict=True)
        return cls(*(list(chain.from_iterable(column)) for column in columns))

    def since(self, offset: int) -> RecordColumns:
        """Return the records from an offset on."""
        start = bisect_left(self.offsets, offset)
        return RecordColumns(*(column[start:] for column in self._lists())) if start else self

    def row(self, index: int) -> tuple[int, int, bytes | None, bytes | None, bytes]:
        """Return one record: offset, time, key, value and headers."""
        offset, timestamp_ms, key, value, headers = (column[index] for column in self._lists())
        return offset, timestamp_ms, key, value, headers

    def _appends(self) -> tuple[Callable[[Any], None], ...]:
        return tuple(column.append for column in self._lists())

    def _lists(self) -> tuple[list[Any], ...]:
        return self.offsets, self.timestamps_ms, self.keys, self.values, self.headers


ToColumns: TypeAlias = Callable[[Iterable[Any]], RecordColumns]
"""`RecordColumns.of`, or `RecordColumns.without_headers` for who needs none."""
