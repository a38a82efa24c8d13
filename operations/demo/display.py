"""Live progress of the demo on stderr: two bars with rates on a terminal, a line every other second elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Final, Self

import click

from operations.demo.publishing import DemoTally

LINE_EVERY_SECONDS: Final = 2.0


class Display:
    """Shows how much is published and projected. Used as a context manager around the work."""

    def __init__(self, total: int, tally: DemoTally) -> None:
        self._total = total
        self._tally = tally
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._started = self._printed_at = time.monotonic()
        self._last_at: dict[str, float] = {}
        self._last: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._started = self._printed_at = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("  {task.description:<9}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:>9}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bars = Progress(*columns, console=Console(stderr=True))
            self._tasks = {name: self._bars.add_task(name, total=self._total, rate="") for name in NAMES}
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def seconds(self, name: str) -> float:
        """Return the seconds from the start to the last growth of this count."""
        return max(0.001, self._last_at.get(name, self._started) - self._started)

    def show(self, projected: int) -> None:
        """Show the current counts."""
        now = time.monotonic()
        counts = {"published": self._tally.published, "projected": projected}
        for name, count in counts.items():
            if count > self._last.get(name, 0):
                self._last[name], self._last_at[name] = count, now
        if self._bars is not None:
            for name, count in counts.items():
                self._bars.update(self._tasks[name], completed=count, rate=f"{self._rate(name):,.0f}/s")
        elif now - self._printed_at >= LINE_EVERY_SECONDS:
            self._printed_at = now
            line = ", ".join(f"{name} {count:,} ({self._rate(name):,.0f}/s)" for name, count in counts.items())
            click.echo(f"  {line} of {self._total:,}", err=True)

    def _rate(self, name: str) -> float:
        return self._last.get(name, 0) / self.seconds(name)


NAMES: Final = ("published", "projected")
