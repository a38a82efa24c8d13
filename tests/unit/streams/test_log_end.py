"""The comparison of the log's end with what Kafka holds there."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from audit.canonical import headers_bytes
from streams.errors import LogTruncated
from streams.kafka.record_columns import RecordColumns
from streams.log_end import LogEnd, LoggedRecord
from streams.open_partition import OpenPartition

HEADERS = (("ce_type", b"t"), ("odd", None))
CHECKPOINT = 12
"""The last logged record is 9: offsets 10 and 11 are a gap."""


def kafkas(offset: int, **changes: Any) -> ConsumerRecord:
    fields = {"timestamp": 1_000, "key": b"k", "value": b"v", "headers": HEADERS, **changes}
    return ConsumerRecord(
        "t", 0, offset, fields["timestamp"], 1, fields["key"], fields["value"], None, 1, 1, fields["headers"]
    )


LOG_END = LogEnd(LoggedRecord(9, 1_000, b"k", b"v", headers_bytes(HEADERS)), CHECKPOINT)


class FetchState:
    def __init__(self, position: int) -> None:
        self.position = position


def opened(log_end: LogEnd = LOG_END, *, position: int = 9) -> OpenPartition:
    return OpenPartition(1, position, FetchState(position), None, log_end)


def advance(partition: OpenPartition, next_offset: int, *records: ConsumerRecord) -> list[int] | None:
    """Return the offsets that are delivered of a fetch; None where nothing is."""
    partition.fetch_state.position = next_offset
    batch = partition.advance("t", 0, RecordColumns.of(records))
    if batch is not None:
        assert (batch.fetched_from, batch.next_offset) == (max(CHECKPOINT, partition_from(batch.offsets)), next_offset)
        assert batch.headers == [headers_bytes(HEADERS)] * len(batch)
    return None if batch is None else batch.offsets


def partition_from(offsets: list[int]) -> int:
    return offsets[0] if offsets else CHECKPOINT


def test_records_behind_the_checkpoint_are_delivered_once_the_last_logged_one_is_the_same() -> None:
    """The one that is compared is not delivered again."""
    partition = opened()
    assert advance(partition, 14, kafkas(9), kafkas(12), kafkas(13)) == [12, 13]
    assert (partition.stop_reason, partition.position) == (None, 14)
    assert advance(partition, 15, kafkas(14)) == [14]


def test_nothing_is_delivered_before_the_checkpoint_is_reached() -> None:
    """A fetch may end at the compared record, or in the gap behind it."""
    partition = opened()
    assert advance(partition, 10, kafkas(9)) is None
    assert advance(partition, 11) is None
    assert advance(partition, 12) is None
    assert partition.stop_reason is None
    assert partition.log_end is None
    assert advance(partition, 13, kafkas(12)) == [12]


@pytest.mark.parametrize(
    "records",
    [
        [kafkas(9, value=b"w"), kafkas(12)],
        [kafkas(9, key=b"l"), kafkas(12)],
        [kafkas(9, key=None), kafkas(12)],
        [kafkas(9, timestamp=1_001), kafkas(12)],
        [kafkas(9, headers=HEADERS[:1]), kafkas(12)],
        [kafkas(12)],
        [kafkas(10), kafkas(12)],
        [kafkas(9), kafkas(10), kafkas(12)],
        [kafkas(9), kafkas(11)],
    ],
    ids=["value", "key", "no key", "time", "headers", "missing", "shifted", "in the gap", "in the gap, late"],
)
def test_any_difference_up_to_the_checkpoint_stops_the_partition(records: list[ConsumerRecord]) -> None:
    """Also a record where a gap was: it would be skipped."""
    partition = opened()
    assert advance(partition, 13, *records) is None
    assert isinstance(partition.stop_reason, LogTruncated)
    assert not partition.is_fetched
    assert partition.position == 9


def test_a_difference_is_seen_in_a_later_fetch() -> None:
    """The gap may come in pieces."""
    partition = opened()
    assert advance(partition, 10, kafkas(9)) is None
    assert advance(partition, 12, kafkas(11)) is None
    assert isinstance(partition.stop_reason, LogTruncated)


def test_where_nothing_was_logged_there_are_only_gaps() -> None:
    """Kafka's log from its first offset on, up to the checkpoint."""
    nothing = LogEnd(None, CHECKPOINT)
    assert advance(opened(nothing, position=3), 13, kafkas(12)) == [12]
    partition = opened(nothing, position=3)
    assert advance(partition, 13, kafkas(5), kafkas(12)) is None
    assert isinstance(partition.stop_reason, LogTruncated)


@pytest.mark.parametrize(
    ("log_end", "low", "start"),
    [(LOG_END, 0, 9), (LOG_END, 10, 10), (LOG_END, 12, 12), (LogEnd(None, 12), 3, 3), (LogEnd(None, 0), 0, 0)],
)
def test_reading_begins_where_the_comparison_needs_it(log_end: LogEnd, low: int, start: int) -> None:
    """At the last logged record, or at Kafka's first one where that was deleted; never behind the checkpoint."""
    assert log_end.read_from(low) == start
