"""Progress of long work off a terminal: JSON lines, with the rate and the time left."""

from __future__ import annotations

import json

import pytest

from operations.cli.progress import JsonLines


def test_a_line_every_few_seconds_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has what is done, the rate since the begin, and the seconds that are left at it."""
    now = 0.0
    lines = JsonLines("filling agents_b1/1", 1_000, lambda: now)
    now = 4.9
    lines.advance(100)
    now = 5.0
    lines.advance(400)
    lines.advance(100)
    now = 8.0
    lines.advance(400)
    lines.end()
    printed = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    title = {"progress": "filling agents_b1/1", "total": 1_000}
    assert printed == [
        {**title, "done": 500, "per_second": 100, "left_seconds": 5.0},
        {**title, "done": 1_000, "per_second": 125, "left_seconds": 0.0},
    ]


def test_nothing_done_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no rate to go by."""
    JsonLines("filling", 10, lambda: 0.0).end()
    assert json.loads(capsys.readouterr().err)["left_seconds"] is None
