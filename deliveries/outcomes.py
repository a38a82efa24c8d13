"""The outcome of an attempt: what came back, and what it means for the delivery and its endpoint.

    2xx, the whole answer     delivered
    410                       gone: the endpoint takes no more deliveries
    429, 502, 503, 504        throttled: failed, and the endpoint is given time
    anything else             failed, redirects and answers that break off among them

Sources: RFC 9110, 5.6.7 (dates), 10.2.3 (Retry-After), 15 (status codes)
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

ErrorClass = Literal["dns", "refused_address", "proxy", "connection", "tls", "timeout", "protocol", "answer_too_large"]
"""The reason for which no whole answer came: its name, the guard, the proxy, the connection, its encryption, the total
deadline, an answer that is no HTTP, breaks off or can't be decoded, an answer with too long a head."""
OutcomeKind = Literal["delivered", "failed", "gone", "throttled"]

GONE: Final = 410
THROTTLING_STATUS_CODES: Final = frozenset({429, 502, 503, 504})
RETRY_AFTER_MAX_SECONDS: Final = 3600.0
THROTTLE_MIN_SECONDS: Final = 1.0

_DATE_MAX_CHARACTERS: Final = 64
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = (
    re.compile(rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(
        r"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday), "
        rf"(?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"
    ),
    re.compile(rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[0-9 ][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
"""IMF-fixdate, and the two former forms, of RFC 850 and of C's `asctime`, which a recipient must read too."""


class AttemptOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt: a status code, an error, or an error after the status code."""

    status_code: int | None = None
    """The answer's, where its head came; interim answers (1xx) are no answer."""
    error_class: ErrorClass | None = None
    """None where the whole answer came."""
    retry_after_seconds: Annotated[float, Meta(ge=0, le=RETRY_AFTER_MAX_SECONDS)] | None = None
    """The answer's Retry-After, as `parse_retry_after` reads it."""

    def __post_init__(self) -> None:
        """Raise ValueError where there is neither an answer nor an error."""
        if self.status_code is None and self.error_class is None:
            raise ValueError("an attempt ends with an answer or an error")


def classify(outcome: AttemptOutcome) -> OutcomeKind:
    """Return what an outcome means. Success needs the whole answer; for what throttles or disables, its head is enough.

    A protocol switch (101), which ends an exchange although it is a 1xx, is a failure: none was asked for.

    >>> classify(AttemptOutcome(status_code=204)), classify(AttemptOutcome(status_code=302))
    ('delivered', 'failed')
    >>> classify(AttemptOutcome(status_code=200, error_class="timeout"))
    'failed'
    """
    if outcome.status_code is None:
        return "failed"
    if outcome.status_code == GONE:
        return "gone"
    if outcome.status_code in THROTTLING_STATUS_CODES:
        return "throttled"
    return "delivered" if 200 <= outcome.status_code <= 299 and outcome.error_class is None else "failed"


def throttle_seconds(outcome: AttemptOutcome) -> float:
    """Return how long the endpoint gets no attempts of any delivery: its Retry-After, a second at least, or 0.

    >>> throttle_seconds(AttemptOutcome(status_code=503, retry_after_seconds=120.0))
    120.0
    >>> throttle_seconds(AttemptOutcome(status_code=500, retry_after_seconds=120.0))
    0.0
    """
    if classify(outcome) != "throttled":
        return 0.0
    return max(THROTTLE_MIN_SECONDS, outcome.retry_after_seconds or 0.0)


def parse_retry_after(text: str, now: datetime) -> float | None:
    """Return the seconds that a Retry-After asks for, from 0 to an hour, or None where it can't be read. Never raises.

    >>> now = datetime(1994, 11, 6, 8, 49, 30, tzinfo=UTC)
    >>> parse_retry_after("120", now), parse_retry_after("86400", now), parse_retry_after("-1", now)
    (120.0, 3600.0, None)
    >>> parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), parse_retry_after("Sun Nov  6 08:49:37 1994", now)
    (7.0, 7.0)
    """
    stripped = text.strip(" \t")
    if stripped.isascii() and stripped.isdigit():
        return _bounded(float(stripped))  # of digits, this never raises: the largest are infinite
    date = _parse_http_date(stripped, now.astimezone(UTC).year)
    return None if date is None else _bounded((date - now).total_seconds())


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), RETRY_AFTER_MAX_SECONDS)


def _parse_http_date(text: str, current_year: int) -> datetime | None:
    """Return the time of an HTTP date, None for another text. The name of its weekday is not compared with the date."""
    if len(text) > _DATE_MAX_CHARACTERS:
        return None
    found = next((found for form in _DATES if (found := form.fullmatch(text))), None)
    if found is None:
        return None
    year = int(found["year"])
    if len(found["year"]) == 2:
        year = _full_year(year, current_year)
    try:
        minute = datetime(
            year,
            _MONTHS.index(found["month"]) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            tzinfo=UTC,
        )
        second = int(found["second"])  # 60 is a leap second
        return minute + timedelta(seconds=second) if second <= 60 else None
    except (ValueError, OverflowError):
        return None


def _full_year(two_digits: int, current_year: int) -> int:
    """Return the latest year with these last digits that is at most 50 years ahead: RFC 9110, 5.6.7."""
    latest = current_year + 50
    return latest - (latest - two_digits) % 100
