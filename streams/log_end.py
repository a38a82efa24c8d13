"""The end of a partition's log as Postgres holds it, and its comparison with what Kafka holds there.

Kafka can lose the tail of a log that was read already: an unclean leader election, or a file system that lost what was
not synced. Once it has grown past the checkpoint again, offsets alone say nothing; the records below it were replaced.
So the last logged record is read again and compared before anything behind it is delivered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from streams.batch import EventBatch
from streams.kafka.record_columns import RecordColumns


@dataclass(frozen=True, slots=True)
class LoggedRecord:
    """A record as the log holds it; `headers` are canonical bytes (`audit/canonical.py`)."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: bytes

    def is_record(self, record: LoggedRecord) -> bool:
        """Return whether Kafka holds this record."""
        return self == record


@dataclass(frozen=True, slots=True)
class RecordDigest:
    """A record that Postgres does not hold: its offset, and its digest (`record_digest`)."""

    offset: int
    digest: bytes

    def is_record(self, record: LoggedRecord) -> bool:
        """Return whether Kafka holds this record."""
        return self == record_digest(record)


def record_digest(record: LoggedRecord) -> RecordDigest:
    """Return the digest of a record: SHA-256 of its time, then of key, value and headers, each behind its length.

    Numbers have eight bytes, signed, big-endian; the length of null is -1.

    >>> record_digest(LoggedRecord(7, 1, b"k", None, b"")).digest.hex()[:16]
    '1d20b414573268fa'
    """
    parts = [record.timestamp_ms.to_bytes(8, "big", signed=True)]
    for each in (record.key, record.value, record.headers):
        parts += [(-1 if each is None else len(each)).to_bytes(8, "big", signed=True), each or b""]
    return RecordDigest(record.offset, hashlib.sha256(b"".join(parts)).digest())


def record_of(batch: EventBatch, row: int) -> LoggedRecord:
    """Return a record of a batch."""
    return LoggedRecord(
        batch.offsets[row], batch.timestamps_ms[row], batch.keys[row], batch.values[row], batch.headers[row]
    )


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The last logged record of a partition, None where there is none, and the checkpoint.

    From the record on, up to the checkpoint, Kafka holds nothing else that consumers see: only gaps.
    """

    last: LoggedRecord | RecordDigest | None
    next_offset: int
    compared: bool = True
    """False where it is not known which record was the last below the checkpoint: none is read again."""

    def read_from(self, low: int) -> int:
        """Return the offset from which Kafka's records are to be read again; `low` is its first one.

        Where that is the checkpoint there is nothing to compare.
        """
        if not self.compared:
            return self.next_offset
        return min(self.next_offset, low if self.last is None else max(low, self.last.offset))

    def difference(self, records: RecordColumns, position: int, next_position: int) -> str | None:
        """Return how Kafka's records, read from `position` up to `next_position`, differ; None where they don't."""
        last = self.last if self.last is not None and position <= self.last.offset < next_position else None
        for row, offset in enumerate(records.offsets):
            if offset >= self.next_offset:
                break
            if last is None or not last.is_record(LoggedRecord(*records.row(row))):
                return f"Kafka holds a record at offset {offset} that is not the one that was logged"
            last = None
        return None if last is None else f"Kafka holds no record at offset {last.offset} any more"
