"""`plant audit`: prove that the log is what was written, and raise the version of what is proved."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show
from operations.operator_actions import OperatorAction, actor_option, reason_option, with_facts

if TYPE_CHECKING:
    from audit.verifier.chain_range import Chain
    from audit.verifier.verdicts import ChainVerdict
    from operations.chain_versions import ChainState

LINE_EVERY_SECONDS = 5.0


@click.group(name="audit", cls=CommandGroup)
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
@click.option("--jobs", type=click.IntRange(min=1), help="Processes to use.  [default: at most one a core]")
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
    """Recompute every hash from the stored bytes; exit 3 naming the first bad entry.

    Exit 3 as well where something is named that has no entry, and where entries have a schema that is not known here:
    their verdict is `cannot judge`. PLANT_SCHEMA_IDS_FILE names an external registry's schemas.
    """
    from audit.verifier.chains import verify_chains as run
    from audit.verifier.heads import load
    from audit.verifier.verdicts import ChainFilter, raise_unless_good
    from runtime.settings import load_settings

    if first is not None and last is not None and last < first:
        raise click.BadParameter(f"{last} is before --from {first}.", param_hint="--to")
    kept = load(expect) if expect else None
    chosen = [_chain(name) for name in chains] or None
    settings = load_settings()
    schema_ids = Path(settings.schema_ids_file) if settings.schema_ids_file else None
    with _Progress() as progress:
        verdicts = run(
            settings.database_address("auditor"),
            chains=chosen,
            topic=topic,
            partition=partition,
            first=first,
            last=last,
            jobs=jobs,
            expect=kept or (),
            schema_ids=schema_ids,
            planned=progress.planned,
            progress=progress.advance,
        )
    _show(verdicts, output)
    choice = ChainFilter(chains=chosen, topic=topic, partition=partition, first=first, last=last)
    raise_unless_good(verdicts, choice, expect=kept, schema_ids=schema_ids)


@command.command()
def head() -> None:
    """Print the chain heads as JSON: keep them elsewhere, and give them to `verify --expect` later."""
    from audit.verifier.chains import read_heads
    from audit.verifier.heads import dump
    from runtime.settings import load_settings

    heads = read_heads(load_settings().database_address("auditor"))
    click.echo(dump(heads), nl=False)
    if not heads:
        click.echo("There are no chains: the file proves nothing later.", err=True)


@command.command(name="raise-version")
@click.option("--topic", "topics", multiple=True, help="Only this topic; may be given several times.  [default: all]")
@click.option("--execute", is_flag=True, help="Publish; without it only the plan is shown.")
@output_option
@actor_option
@reason_option("The audit chains go over to v2.")
def raise_version(topics: tuple[str, ...], execute: bool, output: Output, actor: str, reason: str) -> None:
    """Take the audit chains to v2, which covers dispositions and event ids.

    A control record is published into each partition that has none yet; from it on the chain is v2, and there is no way
    back. Do it when every worker knows v2: older ones wait at the record. Running it again does the rest. What workers
    have not logged yet is read for it, from Kafka. New topics begin with v1, so run it after `plant topics apply` too.

    \b
    Examples:
      plant audit raise-version
      plant audit raise-version --execute
      plant audit raise-version --topic genesis.events-2 --execute
    """
    from operations.chain_versions import TOPICS, chain_states, raise_chains, refuse_other_topics
    from runtime.settings import load_settings

    settings = load_settings()
    refuse_other_topics(topics)
    states = asyncio.run(chain_states(settings, topics or TOPICS))
    wanted = [state for state in states if state.raised_at is None and state.published_at is None]
    published: dict[tuple[str, int], int] = {}
    if execute and wanted:
        target = ", ".join(sorted({state.topic for state in wanted}))
        why = with_facts(reason, [f"{len(wanted)} partitions"])
        action = OperatorAction(action="audit.raise_version", target=target, reason=why, actor=actor)

        async def publish() -> None:
            async for position in raise_chains(settings, wanted, action):
                published[position.topic, position.partition] = position.offset

        try:
            asyncio.run(publish())
        finally:
            _show_versions(states, published, output)
    else:
        _show_versions(states, published, output)
    if execute:
        click.echo(f"{len(published)} control records published.", err=True)
    else:
        click.echo(f"{len(wanted)} control records to publish. Nothing was done: --execute does it.", err=True)


def _show_versions(states: list[ChainState], published: dict[tuple[str, int], int], output: Output) -> None:
    rows = []
    for state in states:
        at = published.get((state.topic, state.partition), state.published_at)
        if state.raised_at is not None:
            done = "keep"
        elif state.published_at is not None:
            done = "wait"
        else:
            done = "publish" if at is None else "published"
        chain = {"topic": state.topic, "partition": state.partition, "version": state.version}
        rows.append({**chain, "first_v2_offset": state.raised_at, "action": done, "published_at": at})
    show(rows, output)


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
        state = verdict.state.upper() if fault and output == "table" else verdict.state
        position = {"entries": verdict.entries, "head_offset": verdict.head_offset, "head_hash": verdict.head_hash}
        unjudged = None if verdict.unjudged is None else msgspec.to_builtins(verdict.unjudged)
        rows.append({**chain, "verdict": state, **position, "finding": finding, "unjudged": unjudged})
    if not rows:
        click.echo("There are no chains: nothing was checked.", err=True)
    show(rows, output, columns=["topic", "partition", "verdict", "entries", "head_offset", "head_hash"])


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
