"""Where in a topic to start reading, and where to end."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas.leap_seconds import after_leap_second
from streams.errors import UnknownStart


class LastOffsets(msgspec.Struct, frozen=True):
    """A number of offsets before the end of each partition."""

    count: int


Start = Literal["earliest", "latest"] | datetime | int | LastOffsets
"""`earliest`, `latest`, a time (the first record at or after it), an offset or a number of offsets before the end (both
the same in every partition)."""

OFFSET_MAX: Final = 2**63 - 1
SPANS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
FORMS: Final = "earliest, latest, an offset such as 42, the last -10, a duration such as 10m, a time such as"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET: Final = re.compile(r"(-|offset:)?([0-9]{1,19})")
_SPAN: Final = re.compile(r"([0-9]{1,12})([smhd])")
_COMPACT_TIMES: Final = {
    8: ("%Y%m%d", "%Y-%m-%d"),
    12: ("%Y%m%d%H%M", "%Y-%m-%dT%H:%MZ"),
    14: ("%Y%m%d%H%M%S", "%Y-%m-%dT%H:%M:%SZ"),
}
"""Digits of a time without separators, how they are read, and how the time is written."""
_COMPACT_YEARS: Final = range(1970, 2100)
_POSIX_UNITS: Final = {10: 1, 13: 1_000}
"""Digits of a POSIX time from 2001 to 2286, and how many of its units make a second."""


def parse_start(text: str, now: datetime, option: str = "--from") -> Start:
    """Return a start, or an end, from its text; raise UnknownStart, which names the option.

    >>> now = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    >>> parse_start("42", now), parse_start("-10", now)
    (42, LastOffsets(count=10))
    >>> parse_start("2026-11-23T08:00Z", now) == parse_start("60m", now)
    True
    >>> parse_start("20261126", now)
    Traceback (most recent call last):
    streams.errors.UnknownStart: 20261126 may be a time or an offset. Write --from 2026-11-26 or --from offset:20261126.
    """
    match text:
        case "earliest":
            return "earliest"
        case "latest":
            return "latest"
    number = _OFFSET.fullmatch(text)
    if number is not None and int(number[2]) <= OFFSET_MAX:
        if number[1] == "-":
            return LastOffsets(int(number[2]))
        if number[1] is None and (time := _read_as_time(text)) is not None:
            raise UnknownStart(
                f"{text} may be a time or an offset.",
                why=f"Write {option} {time} or {option} offset:{text}.",
                next_step=f"plant consume {option} {time}",
            )
        return int(number[2])
    try:
        if (span := _SPAN.fullmatch(text)) is not None:
            return now - timedelta(**{SPANS[span[2]]: int(span[1])})
        time_of_day = datetime.fromisoformat(after_leap_second(text) or text.upper())
    except (ValueError, OverflowError):
        raise UnknownStart(
            f"{text[:80]!r} is no value of {option}.",
            why=f"It takes {FORMS} {now:%Y-%m-%dT%H:%MZ}.",
            next_step=f"plant consume {option} 10m",
        ) from None
    return time_of_day if time_of_day.tzinfo else time_of_day.replace(tzinfo=UTC)


def _read_as_time(digits: str) -> str | None:
    """Return the time that digits may stand for, as it is written so that it can be nothing else; None for none."""
    if (unit := _POSIX_UNITS.get(len(digits))) is not None:
        time = _EPOCH + timedelta(seconds=int(digits) // unit, milliseconds=int(digits) % unit)
        return time.isoformat().replace("+00:00", "Z") if time.year in _COMPACT_YEARS else None
    read, written = _COMPACT_TIMES.get(len(digits), ("", ""))
    try:
        time = datetime.strptime(digits, read).replace(tzinfo=UTC)
    except ValueError:
        return None
    return time.strftime(written) if time.year in _COMPACT_YEARS else None


def check_order(start: Start, end: Start) -> None:
    """Raise UnknownStart for an end before the start. Those of different kinds can't be compared here."""
    match start, end:
        case (int(), int()) | (datetime(), datetime()):
            reversed_range = end < start  # type: ignore[operator]
        case LastOffsets(), LastOffsets():
            reversed_range = end.count > start.count
        case _:
            reversed_range = (start, end) == ("latest", "earliest")
    if reversed_range:
        raise UnknownStart(
            "The end is before the start.",
            why="No event is between them.",
            next_step="plant consume --from earliest --to latest",
        )


async def offsets_at(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """Return the first offset at or after a start in each partition, within what the log holds."""
    first = await consumer.beginning_offsets(partitions)
    end = await consumer.end_offsets(partitions)
    if start == "earliest":
        return dict(first)
    if start == "latest":
        return dict(end)
    if isinstance(start, datetime):
        timestamp_ms = max(0, -((_EPOCH - start) // timedelta(milliseconds=1)))  # Kafka takes no time before 1970
        first_at = await consumer.offsets_for_times(dict.fromkeys(partitions, timestamp_ms))
        offsets = {
            partition: end[partition] if first_at[partition] is None else first_at[partition].offset
            for partition in partitions
        }
    elif isinstance(start, LastOffsets):
        offsets = {partition: end[partition] - start.count for partition in partitions}
    else:
        assert isinstance(start, int)
        offsets = dict.fromkeys(partitions, start)
    return {partition: min(max(offsets[partition], first[partition]), end[partition]) for partition in partitions}
