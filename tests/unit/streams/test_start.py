"""Where reading starts and ends: offsets, times, durations, and numbers that may be a time."""

from __future__ import annotations

import doctest
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka.structs import OffsetAndTimestamp, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streams import start
from streams.errors import UnknownStart
from streams.start import LastOffsets, Start, check_order, offsets_at, parse_start

NOW = datetime(2026, 11, 27, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("earliest", "earliest"),
        ("latest", "latest"),
        ("0", 0),
        ("7", 7),
        ("offset:20261126", 20261126),
        ("-10", LastOffsets(10)),
        ("-0", LastOffsets(0)),
        ("10s", NOW - timedelta(seconds=10)),
        ("10m", NOW - timedelta(minutes=10)),
        ("36h", NOW - timedelta(hours=36)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-11-23T08:00:00Z", datetime(2026, 11, 23, 8, tzinfo=UTC)),
        ("2026-11-23t08:00:00z", datetime(2026, 11, 23, 8, tzinfo=UTC)),
        ("2026-11-23T10:00:00.5+02:00", datetime(2026, 11, 23, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("2026-11-23T08:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
    ],
)
def test_starts_are_read(given_text: str, expected: object) -> None:
    """earliest, latest, offsets, offsets before the end, durations before now, times (in UTC where they name none)."""
    assert parse_start(given_text, NOW) == expected


@pytest.mark.parametrize(
    "given_text",
    [
        "",
        "soon",
        "²",
        "-²",
        "2026-13-01",
        "10M",
        "10 m",
        "m",
        "-10m",
        "+5",
        "offset:",
        "offset:-1",
        "offset:x",
        str(2**63),
        "9" * 5_000,
        "-" + "9" * 5_000,
        "9" * 12 + "d",
        "9" * 5_000 + "s",
    ],
)
def test_other_starts_are_refused(given_text: str) -> None:
    """Anything else is a usage error with an example of the option that it was given to."""
    with pytest.raises(UnknownStart) as refused:
        parse_start(given_text, NOW, "--to")
    assert refused.value.exit_code == 2
    assert "--to" in refused.value.next_step
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("given_text", "time"),
    [
        ("20261126", "2026-11-26"),
        ("202611260815", "2026-11-26T08:15Z"),
        ("20261126081530", "2026-11-26T08:15:30Z"),
        ("1795680000", "2026-11-26T08:00:00Z"),
        ("1795680000123", "2026-11-26T08:00:00.123000Z"),
    ],
)
def test_a_number_that_may_be_a_time_is_read_as_neither(given_text: str, time: str) -> None:
    """A date without separators and a POSIX time name both of their readings; written as advised, each is read."""
    with pytest.raises(UnknownStart) as refused:
        parse_start(given_text, NOW)
    assert refused.value.exit_code == 2
    assert f"--from {time} " in refused.value.why
    assert f"--from offset:{given_text}" in refused.value.why
    assert isinstance(parse_start(time, NOW), datetime)
    assert parse_start(f"offset:{given_text}", NOW) == int(given_text)


@pytest.mark.parametrize("given_text", ["20261326", "20260230", "18991231", "202611262460", "99999999", "2026", "120"])
def test_a_number_that_is_no_date_is_an_offset(given_text: str) -> None:
    """Digits alone that name no day of the calendar are an offset."""
    assert parse_start(given_text, NOW) == int(given_text)


@given(st.text(max_size=24) | st.from_regex(r"-?[0-9TZ:.+-]{1,24}[smhd]?", fullmatch=True))
def test_any_text_is_a_start_or_refused(given_text: str) -> None:
    """No text makes it fail otherwise."""
    with suppress(UnknownStart):
        parse_start(given_text, NOW)


LATER = NOW + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("first", "last"), [(5, 4), (LATER, NOW), (LastOffsets(3), LastOffsets(4)), ("latest", "earliest")]
)
def test_an_end_before_the_start_is_refused(first: Start, last: Start) -> None:
    """Two of a kind are compared before anything is asked; nobody is left to believe that there were no events."""
    with pytest.raises(UnknownStart, match="before"):
        check_order(first, last)


@pytest.mark.parametrize(
    ("first", "last"), [(5, 5), (NOW, LATER), (LastOffsets(4), LastOffsets(3)), ("earliest", "latest"), (5, NOW)]
)
def test_other_ranges_are_taken(first: Start, last: Start) -> None:
    """An empty range is one, and those of different kinds are compared by each partition."""
    check_order(first, last)


class OnePartition:
    """Answers as a consumer does for a partition that holds the offsets 100 to 199, one a second from NOW on."""

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 100)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 200)

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        found = {}
        for partition, time in times.items():
            offset = 100 + max(0, -(-(time - int(NOW.timestamp() * 1000)) // 1000))
            # A record of a transaction that is still open: it has a time, and is beyond the end of committed ones.
            found[partition] = OffsetAndTimestamp(offset, time) if offset <= 210 else None
        return found


@pytest.mark.parametrize(
    ("asked", "offset"),
    [
        ("earliest", 100),
        ("latest", 200),
        (150, 150),
        (7, 100),
        (10**15, 200),
        (LastOffsets(0), 200),
        (LastOffsets(10), 190),
        (LastOffsets(10**15), 100),
        (NOW, 100),
        (NOW + timedelta(seconds=30), 130),
        (NOW + timedelta(seconds=205), 200),
        (NOW + timedelta(days=1), 200),
        (datetime(1, 1, 1, tzinfo=UTC), 100),
    ],
)
async def test_a_start_is_an_offset_within_the_log(asked: Start, offset: int) -> None:
    """Whatever is asked for, the offset is one that the partition holds, or the one after its last."""
    partition = TopicPartition("t", 0)
    assert await offsets_at(OnePartition(), [partition], asked) == {partition: offset}  # type: ignore[arg-type]


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(start).failed == 0
