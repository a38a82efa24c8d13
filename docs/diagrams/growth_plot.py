"""Draws how the rate changes as the log grows, from what `python -m benchmarks growth` measured (`growth.json`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from draw import Drawing

MEASURED: Final = Path(__file__).with_name("growth.json")
LEFT, TOP, BAR, GAP, WIDE = 190, 64, 26, 18, 520


class Measured(msgspec.Struct, frozen=True):
    """A size of the log: its rate and its processor time an event, as times those on an empty log in the same run."""

    name: str
    times: float
    cpu_times: float


def drawings() -> dict[str, str]:
    """Return the picture by its file name."""
    return {"growth.svg": growth_plot()}


def growth_plot() -> str:
    """Draw a bar for each size of the log: its rate, in per cent of the rate on an empty log."""
    rows = msgspec.json.decode(MEASURED.read_bytes(), type=list[Measured])
    height = TOP + len(rows) * (BAR + GAP) + 30
    page = Drawing(LEFT + WIDE + 150, height, "The rate as the log grows, in per cent of the rate on an empty log")
    page.text(16, 30, "Events a second as the log grows, an empty log being 100 %", bold=True)
    for number, row in enumerate(rows):
        y = TOP + number * (BAR + GAP)
        page.text(LEFT - 12, y + 18, row.name, right=True)
        page.bar(LEFT, y, round(WIDE * row.times), BAR)
        label = f"{row.times * 100:.0f} %; processor time an event {row.cpu_times * 100:.0f} %"
        page.text(LEFT + 10, y + 18, label, small=True)
    page.text(
        LEFT, height - 14, "Postgres and the engine, 4 partitions, every guarantee on; without the broker.", soft=True
    )
    return page.svg()
