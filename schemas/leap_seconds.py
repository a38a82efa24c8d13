"""Leap seconds in the times of JSON texts: `23:59:60Z` is a time by RFC 3339, which datetime can't hold.

Such a time is read as the second after it, which has the same POSIX time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

_AT_SECOND_60: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):60((?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d))", re.ASCII)


def after_leap_second(text: str) -> str | None:
    """Return the second after a leap second, or None for any other text. Leap seconds end a month in UTC.

    >>> after_leap_second("2016-12-31T23:59:60Z"), after_leap_second("2017-01-01T00:59:60.5+01:00")
    ('2017-01-01T00:00:00+00:00', '2017-01-01T01:00:00.500000+01:00')
    >>> after_leap_second("2016-12-30T23:59:60Z"), after_leap_second("2016-12-31T23:58:60Z")
    (None, None)
    """
    parts = _AT_SECOND_60.fullmatch(text)
    if parts is None:
        return None
    try:
        second_before = msgspec.convert(f"{parts[1]}:59{parts[2]}", datetime)
        after = second_before + timedelta(seconds=1)
        in_utc = after.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        return None
    return after.isoformat() if (in_utc.day, in_utc.hour, in_utc.minute, in_utc.second) == (1, 0, 0, 0) else None


def without_leap_second(body: bytes, path: str) -> bytes | None:
    """Return a JSON text whose leap second at this path of msgspec's has become the next one; None: there is none."""
    try:
        document: Any = msgspec.json.decode(body)
        *parents, last = [int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", path[1:])]
        holder = document
        for part in parents:
            holder = holder[part]
        value = holder[last]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return None
    after = after_leap_second(value) if isinstance(value, str) else None
    if after is None:
        return None
    holder[last] = after
    return msgspec.json.encode(document)
