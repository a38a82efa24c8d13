"""Tables for people: what stands in their cells."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from operations.cli.listing import show


def test_times_in_tables_are_utc_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON keeps the time as it is."""
    moment = datetime(2027, 1, 31, 1, 30, 5, 999999, tzinfo=timezone(timedelta(hours=2)))
    show([{"at": moment}], "table")
    show([{"at": moment}], "jsonl")
    assert capsys.readouterr().out.splitlines() == [
        "at",
        "2027-01-30T23:30:05Z",
        '{"at":"2027-01-31T01:30:05.999999+02:00"}',
    ]
