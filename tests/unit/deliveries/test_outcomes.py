"""The outcome of an attempt, and the waits that answers ask for."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries import outcomes
from deliveries.outcomes import (
    RETRY_AFTER_MAX_SECONDS,
    AttemptOutcome,
    ErrorClass,
    OutcomeKind,
    classify,
    parse_retry_after,
    throttle_seconds,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STATUS_CODES: dict[OutcomeKind, list[int]] = {
    "delivered": [200, 201, 202, 204, 206, 226, 299],
    "gone": [410],
    "throttled": [429, 502, 503, 504],
    "failed": [101, 199, 300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 408, 409, 413, 500, 501, 505, 600, 999],
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in STATUS_CODES.items() for code in codes])
def test_a_status_code_has_a_kind(kind: OutcomeKind, code: int) -> None:
    """Each status code is delivered, failed, gone or throttled; redirects and what is no final answer are failures."""
    assert classify(AttemptOutcome(status_code=code)) == kind


@pytest.mark.parametrize("error_class", get_args(ErrorClass))
def test_an_error_is_never_a_success(error_class: ErrorClass) -> None:
    """Without the whole answer an attempt failed, whatever its head said; throttling and 410 need the head alone."""
    kinds = {
        code: classify(AttemptOutcome(status_code=code, error_class=error_class)) for code in (None, 200, 410, 503)
    }
    assert kinds == {None: "failed", 200: "failed", 410: "gone", 503: "throttled"}


def test_an_outcome_is_an_answer_or_an_error() -> None:
    """An outcome with neither, and one with a Retry-After of days, are refused where they are read."""
    with pytest.raises(ValueError, match="an answer or an error"):
        AttemptOutcome()
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"status_code":503,"retry_after_seconds":90000}', type=AttemptOutcome)


@pytest.mark.parametrize(
    ("code", "retry_after", "seconds"),
    [(503, 120.0, 120.0), (429, None, 1.0), (429, 0.0, 1.0), (504, 0.5, 1.0), (500, 120.0, 0.0), (302, 120.0, 0.0)],
)
def test_an_endpoint_is_throttled_by_four_codes(code: int, retry_after: float | None, seconds: float) -> None:
    """An endpoint that asks for time gets it, a second at least; Retry-After counts with no other code."""
    assert throttle_seconds(AttemptOutcome(status_code=code, retry_after_seconds=retry_after)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("1", 1), (" 120\t", 120), ("007", 7), ("3600", 3600), ("3601", 3600), ("0" * 99 + "5", 5),
        ("9" * 5000, 3600), ("Sun, 01 Mar 2026 12:00:30 GMT", 30), ("Sunday, 01-Mar-26 12:00:30 GMT", 30),
        ("Sun Mar  1 12:00:30 2026", 30), ("Sun Mar 01 12:00:30 2026", 30), ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Mon, 02 Mar 2026 12:00:00 GMT", 3600), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Friday, 01-Mar-75 12:00:00 GMT", 3600), ("Monday, 01-Mar-77 12:00:00 GMT", 0),
        ("Sun, 01 Mar 2026 12:00:60 GMT", 60), ("Mon, 01 Mar 2026 12:00:30 GMT", 30),
    ],
)  # fmt: skip
def test_a_retry_after_is_read(text: str, seconds: int) -> None:
    """Seconds and all three forms of a date give a wait from 0 to an hour; two digits of a year are near today."""
    assert parse_retry_after(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-1", "+1", "1.5", "1e3", "1 2", "1,2", "0x10", "١٢", "²", "soon", "\n1", "1\n", "NaN", "inf",
        "Sun, 30 Feb 2026 12:00:00 GMT", "Sun, 01 Mar 2026 24:00:00 GMT", "Sun, 01 Mar 2026 12:00:61 GMT",
        "Sun, 01 Mar 2026 12:00:00 CET", "Sun, 01 Mar 2026 12:00:00 GMT+1", "Sun, 01 Mar 0000 12:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:60 GMT",
        "sun, 01 mar 2026 12:00:00 gmt", "2026-03-01T12:00:00Z", "Sun, 01 Mar 2026 12:00:00 GMT" * 9, "x" * 100_000,
        "0" * 100_000 + "x",
        "Sun, ٠١ Mar 2026 12:00:00 GMT", "Sun Mar    12:00:30 2026",
    ],
)  # fmt: skip
def test_another_text_is_no_retry_after(text: str) -> None:
    """What is neither a number of seconds nor a date is ignored, and so is a date that no calendar has."""
    assert parse_retry_after(text, NOW) is None


@given(st.one_of(st.text(), st.from_regex(r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")))
def test_no_text_raises(text: str) -> None:
    """Whatever a receiver writes, the wait is none or from 0 to an hour."""
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_MAX_SECONDS


@given(st.integers(min_value=-10_000, max_value=10_000), st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)))
def test_all_forms_of_a_date_are_one_time(offset_seconds: int, now: datetime) -> None:
    """The three forms of a date ask for the same wait, whenever that is."""
    aware = now.replace(tzinfo=UTC, microsecond=0)
    date = aware + timedelta(seconds=offset_seconds)
    forms = (
        format_datetime(date, usegmt=True),
        f"{date:%A, %d-%b-%y %H:%M:%S} GMT",
        f"{date:%a %b} {date.day:2} {date:%H:%M:%S %Y}",
    )
    assert {parse_retry_after(form, aware) for form in forms} == {min(max(0, offset_seconds), RETRY_AFTER_MAX_SECONDS)}


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(outcomes).failed == 0
