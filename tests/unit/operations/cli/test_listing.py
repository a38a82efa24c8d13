"""Tables for people: what stands in their cells."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from operations.cli.listing import Output, show


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


UNSAFE = "a\x1b[31m\x7f\x85\x9b2J\u2028\u202eb\N{GREEK SMALL LETTER ALPHA}"


@pytest.mark.parametrize("output", ["json", "jsonl", "table"])
def test_no_text_moves_the_terminal(capsys: pytest.CaptureFixture[str], output: Output) -> None:
    """Controls and ends of lines are escaped; a program reads the same text, a line each, and letters stay."""
    show([{"name": UNSAFE}, {"name": "b"}], output)
    shown = capsys.readouterr().out
    assert {each for each in shown if not each.isprintable()} == {"\n"}
    assert "\N{GREEK SMALL LETTER ALPHA}" in shown
    if output == "jsonl":
        assert [json.loads(line) for line in shown.splitlines()] == [{"name": UNSAFE}, {"name": "b"}]
    elif output == "json":
        assert json.loads(shown) == [{"name": UNSAFE}, {"name": "b"}]
    else:
        assert len(shown.splitlines()) == 3
