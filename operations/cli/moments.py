"""Times and durations as people type them: `2027-01-31T00:00Z`, `90d`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

SPANS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def read_span(option: str, text: str) -> timedelta:
    """Return a duration. Raises click's BadParameter."""
    try:
        if text[:-1].isascii() and text[:-1].isdigit():
            return timedelta(**{SPANS[text[-1]]: int(text[:-1])})
    except (KeyError, ValueError, OverflowError):
        pass
    raise click.BadParameter(f"{text!r} is no duration, such as 90d, 12h, 30m or 10s", param_hint=option)


def read_bound(option: str, text: str | None, now: datetime) -> datetime | None:
    """Return a time at which something begins or ends, from a time or a duration before now.

    Raises UnknownStart, and click's BadParameter for an offset.
    """
    from streams.start import parse_start

    if text is None:
        return None
    time = parse_start(text, now, option)
    if not isinstance(time, datetime):
        raise click.BadParameter(f"{text[:80]!r} is no time, such as 2026-11-23T08:00Z, 10m or 2d.", param_hint=option)
    try:
        return time.astimezone(UTC)
    except OverflowError:  # the calendar ends in 9999, and begins in 1
        raise click.BadParameter(f"{text[:80]!r} is out of the calendar in UTC.", param_hint=option) from None


def read_moment(option: str, text: str | None, now: datetime) -> datetime | None:
    """Return a point in the future, from a time or a duration. Raises click's BadParameter."""
    if text is None:
        return None
    try:
        moment = now + read_span(option, text) if text[-1:] in SPANS else datetime.fromisoformat(text)
        # The calendar ends in 9999: a time of another zone may be beyond it where it is UTC.
        moment = moment if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is neither a time nor a duration", param_hint=option) from None
    if moment.tzinfo is None:
        raise click.BadParameter("say the time zone, such as 2027-01-31T00:00Z", param_hint=option)
    if moment <= now:
        raise click.BadParameter("that has passed", param_hint=option)
    return moment
