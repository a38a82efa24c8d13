"""`plant audit`: prove that the log is what was written."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from audit.verifier.chain_range import Chain
    from audit.verifier.chains import ChainVerdict

LINE_EVERY_SECONDS = 5.0


@click.group(name="audit")
def command() -> None:
    """Verify the audit chain."""


@command.command()
@click.option(
    "--chain", "chains", multiple=True, metavar="TOPIC/PARTITION", help="A chain; may be given several times."
)
@click.option("--topic", help="All chains of one topic.")
@click.option("--partition", type=click.IntRange(min=0), help="All chains with this partition.")
@click.option("--from", "first", type=click.IntRange(min=0), metavar="OFFSET", help="First offset.  [default: all]")
@click.option("--to", "last", type=click.IntRange(min=0), metavar="OFFSET", help="Last offset.  [default: all]")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes to use.  [default: one a core]")
@click.option(
    "--expect",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Chain heads kept from `plant audit head`: their entries must still be there.",
)
@output_option
def verify(
    chains: tuple[str, ...],
    topic: str | None,
    partition: int | None,
    first: int | None,
    last: int | None,
    jobs: int | None,
    expect: Path | None,
    output: Output,
) -> None:
    """Recompute every hash from the stored bytes; exit 3 naming the first bad entry."""
    from audit.verifier.chains import verify_chains as run
    from audit.verifier.heads import load
    from runtime.settings import load_settings

    kept = load(expect) if expect else []
    chosen = [_chain(name) for name in chains] or None
    url = load_settings().database_address("auditor")
    with _Progress() as progress:
        verdicts = run(
            url,
            chains=chosen,
            topic=topic,
            partition=partition,
            first=first,
            last=last,
            jobs=jobs,
            expect=kept,
            planned=progress.planned,
            progress=progress.advance,
        )
    _show(verdicts, output)
    _refuse_bad(verdicts)


@command.command()
def head() -> None:
    """Print the chain heads as JSON: keep them elsewhere, and give them to `verify --expect` later."""
    from audit.verifier.chains import read_heads
    from audit.verifier.heads import dump
    from runtime.settings import load_settings

    click.echo(dump(read_heads(load_settings().database_address("auditor"))), nl=False)


def _chain(name: str) -> Chain:
    from audit.verifier.chain_range import Chain

    topic, _, partition = name.rpartition("/")
    if not topic or not partition.isdecimal():
        raise click.BadParameter(f"{name!r} is not TOPIC/PARTITION.", param_hint="--chain")
    return Chain(topic, int(partition))


def _show(verdicts: list[ChainVerdict], output: Output) -> None:
    rows: list[dict[str, Any]] = []
    for verdict in verdicts:
        chain = {"topic": verdict.topic, "partition": verdict.partition}
        fault = verdict.finding
        finding = None
        if fault is not None:
            finding = {name: getattr(fault, name) for name in ("offset", "problem", "stored_hash", "recomputed_hash")}
        state = "BAD" if fault else "good" if verdict.entries else "empty"
        position = {"entries": verdict.entries, "head_offset": verdict.head_offset, "head_hash": verdict.head_hash}
        rows.append({**chain, "verdict": state.lower() if output != "table" else state, **position, "finding": finding})
    if output == "table" and not rows:
        click.echo("There are no chains.", err=True)
    show(rows, output, columns=["topic", "partition", "verdict", "entries", "head_offset", "head_hash"])


def _refuse_bad(verdicts: list[ChainVerdict]) -> None:
    """Raise ChainBroken about the first bad entry: the lowest offset of the first chain that has one."""
    from audit.verifier.errors import ChainBroken

    bad = [verdict.finding for verdict in verdicts if verdict.finding is not None]
    if not bad:
        return
    first = bad[0]
    others = f" {len(bad) - 1} more of {len(verdicts)} chains are bad." if len(bad) > 1 else ""
    raise ChainBroken(
        f"The chain {first.topic}/{first.partition} is broken at offset {first.offset}.",
        why=f"{first.problem[:1].upper()}{first.problem[1:]}. Stored hash: {first.stored_hash or 'none'}; "
        f"recomputed: {first.recomputed_hash or 'none'}.{others}",
        next_step=f"plant consume --partition {first.partition} --from {first.offset}",
    )


class _Progress:
    """A bar with rate and time left on a terminal; a line every few seconds elsewhere. Always on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._total = self._done = self._entries = 0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            rate = TextColumn("{task.fields[rate]:>12}")
            columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._entries:
            click.echo(f"{self._entries} entries in {time.monotonic() - self._started:.1f} s, {self._rate()}", err=True)

    def planned(self, offsets: int) -> None:
        self._total = offsets
        if self._bar is not None:
            self._bar.update(self._task, total=offsets)

    def advance(self, offsets: int, entries: int) -> None:
        self._done += offsets
        self._entries += entries
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif time.monotonic() - self._printed >= LINE_EVERY_SECONDS:
            self._printed = time.monotonic()
            click.echo(f"  {self._done} of {self._total} offsets, {self._rate()}", err=True)

    def _rate(self) -> str:
        return f"{self._entries / max(time.monotonic() - self._started, 0.001):,.0f}/s"
