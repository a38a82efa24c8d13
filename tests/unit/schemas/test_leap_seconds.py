"""Leap seconds in JSON: which are times, and that nothing else of a body changes."""

from __future__ import annotations

import doctest
import json

import pytest

from schemas import leap_seconds
from schemas.leap_seconds import after_leap_second, without_leap_second


@pytest.mark.parametrize(
    "text",
    ["2016-12-31T23:59:60", "2016-12-31T22:59:60Z", "9999-12-31T23:59:60Z", "2016-02-30T23:59:60Z", "23:59:60Z", ""],
)
def test_what_is_no_leap_second_stays(text: str) -> None:
    """Without a zone, within a month, beyond the calendar, or no time at all."""
    assert after_leap_second(text) is None


def test_one_value_of_the_body_changes() -> None:
    """The one at the path; a text elsewhere that looks like it is left."""
    leap = "2016-12-31T23:59:60Z"
    body = json.dumps({"name": leap, "data": [{"at": leap}]}).encode()
    mended = without_leap_second(body, "$.data[0].at")
    assert mended is not None
    assert json.loads(mended) == {"name": leap, "data": [{"at": "2017-01-01T00:00:00+00:00"}]}
    for path in ("$", "$.name.x", "$.data[1].at", "$.data[0]", "$.absent"):
        assert without_leap_second(body, path) is None
    assert without_leap_second(b"{", "$.data") is None


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(leap_seconds).failed == 0
