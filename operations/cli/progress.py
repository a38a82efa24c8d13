"""Progress of long work, on stderr: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

LINE_EVERY_SECONDS = 5.0


class ShownProgress:
    """Implements `devstack.progress.Progress`."""

    def say(self, line: str) -> None:
        click.echo(f"{click.style('·', fg='cyan')} {line}", err=True)

    @contextmanager
    def bar(self, title: str, total_bytes: int) -> Iterator[TerminalBar | LineBar]:
        if not sys.stderr.isatty():
            self.say(title)
            yield LineBar(total_bytes)
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Rate

        columns = (TextColumn("· {task.description}"), BarColumn(), DownloadColumn(), Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total_bytes)
            yield TerminalBar(lambda size_bytes: progress.advance(task, size_bytes))


class TerminalBar:
    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance


class LineBar:
    """A line every few seconds; several threads may advance it."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._printed_at = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if time.monotonic() - self._printed_at >= LINE_EVERY_SECONDS:
                self._printed_at = time.monotonic()
                click.echo(f"  {self._done_bytes / 1e6:.0f} of {self._total_bytes / 1e6:.0f} MB", err=True)


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress in items rather than bytes: a bar on a terminal, one line at the end elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        click.echo(f"· {title}: {total:,} done", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("· {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def rated(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress with its rate and the time left: a bar on a terminal, JSON lines elsewhere."""
    if not sys.stderr.isatty():
        lines = JsonLines(title, total)
        yield lines.advance
        lines.end()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f}/s")

    columns = (TextColumn("· {task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


class JsonLines:
    """A JSON line every few seconds, and one at the end; several threads may advance it."""

    def __init__(self, title: str, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._total = total
        self._now = now
        self._done = 0
        self._began_at = self._printed_at = now()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._now() - self._printed_at >= LINE_EVERY_SECONDS:
                self._printed_at = self._now()
                self._print()

    def end(self) -> None:
        with self._lock:
            self._print()

    def _print(self) -> None:
        import json

        seconds = self._now() - self._began_at
        rate = self._done / seconds if seconds else 0.0
        left = round((self._total - self._done) / rate, 1) if rate else None
        line = {"progress": self._title, "done": self._done, "total": self._total, "per_second": round(rate)}
        click.echo(json.dumps({**line, "left_seconds": left}), err=True)
