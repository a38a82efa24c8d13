"""Draws rates and latencies from what `python -m benchmarks.figures` has taken from benchmarks (`performance.json`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from draw import Drawing

MEASURED: Final = Path(__file__).with_name("performance.json")
LEFT, TOP, BAR, GAP, WIDE = 300, 64, 26, 18, 420
LEFT_OUT: Final = ("registry",)
"""It folds by triggers, some fifty times as slow as the others: its bar would not be seen."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a benchmark. Rates are events a second, latencies milliseconds."""

    name: str
    what: str = ""
    events_per_second: float = 0.0
    plant_is_times_faster: float | None = None
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Bar(msgspec.Struct, frozen=True):
    """One bar: its name, its length, and what is written in it."""

    name: str
    value: float
    label: str


def drawings() -> dict[str, str]:
    """Return the pictures by their file names."""
    figures = msgspec.json.decode(MEASURED.read_bytes(), type=dict[str, list[Figure]])
    rates = [each for each in figures["catching up"] if each.name not in LEFT_OUT]
    return {
        "peers.svg": bars(
            "Events a second, on one machine in one run",
            [_rate(each, f"{each.events_per_second:,.0f}/s") for each in figures["peers"]],
            "Plant does its full job with one read model; sinks upsert one table; COPY puts rows into a bare one.",
        ),
        "guarantees.svg": bars(
            "What each guarantee costs: events a second without it, and with more read models",
            [_rate(each, f"{each.events_per_second:,.0f}/s") for each in rates],
            "One worker catches up on four partitions. 'plant' is everything on, with one read model.",
        ),
        "latency.svg": bars(
            "From HTTP 200 to a visible row, at 1,000 events a second",
            [
                Bar(f"{models}, {mark}", value, f"{value:.0f} ms")
                for models, each in zip(("one read model", "five read models"), figures["latency"][:2], strict=True)
                for mark, value in (("p50", each.p50_ms), ("p99", each.p99_ms))
            ],
            "Two cores, which also run broker, database and the sender.",
        ),
    }


def bars(title: str, rows: Sequence[Bar], note: str) -> str:
    """Draw a bar for each row, the longest as wide as the page allows."""
    longest = max(row.value for row in rows)
    height = TOP + len(rows) * (BAR + GAP) + 30
    page = Drawing(LEFT + WIDE + 110, height, title)
    page.text(16, 30, title, bold=True)
    for number, row in enumerate(rows):
        y, width = TOP + number * (BAR + GAP), max(1, round(WIDE * row.value / longest))
        page.text(LEFT - 12, y + 18, row.name, right=True)
        page.bar(LEFT, y, width, BAR)
        page.text(LEFT + width + 8, y + 18, row.label, small=True)
    page.text(16, height - 14, note, soft=True)
    return page.svg()


def _rate(figure: Figure, label: str) -> Bar:
    return Bar(figure.name, figure.events_per_second, label)
