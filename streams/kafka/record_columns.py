"""Fetched records in columns, made while Python's objects of each record are still in the processor's cache."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

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
    def of(cls, records: Iterable[Any], *, with_headers: bool = True) -> RecordColumns:
        """Return records that have the attributes of aiokafka's; without headers, no bytes for those of any.

        Each is dropped before the next one is made: a list of them, and of their headers, costs half as much again.
        """
        columns = cls([], [], [], [], [])
        offset, timestamp_ms, key, value, headers = (column.append for column in columns._lists())
        for record in records:
            offset(record.offset)
            timestamp_ms(record.timestamp)
            key(record.key)
            value(record.value)
            headers(headers_bytes(record.headers) if with_headers else b"")
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

    def _lists(self) -> tuple[list[Any], ...]:
        return self.offsets, self.timestamps_ms, self.keys, self.values, self.headers
