"""`plant projections rebuild|verify|repair|swap|rollback|retire`: read models filled again from the log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from operations.cli.listing import Output, output_option, show
from operations.cli.moments import read_bound
from operations.operator_actions import actor_option, reason_option

if TYPE_CHECKING:
    from runtime.settings import Settings

wait_option = click.option(
    "--wait", "wait_seconds", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait."
)


@click.command()
@click.argument("builds", metavar="[NAME[/VERSION] ...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every read model that has tables of its own.")
@click.option("--jobs", type=click.IntRange(min=1), help="Threads.  [default: one a processor, at most 4]")
@click.option("--max-rate", type=click.IntRange(min=1), metavar="N", help="Most events a second.")
@click.option(
    "--source", type=click.Choice(["log", "topic"]), default="log", show_default=True,
    help="Where records are read: the log's copy, or Kafka's topic.",
)  # fmt: skip
@click.option("--as-of", metavar="TIME", help="Only records up to a time, for looking at: `2026-11-23T08:00Z`, `2d`.")
@click.option("--dry-run", is_flag=True, help="Print what it would take, and do nothing.")
@wait_option
@actor_option
@reason_option("The read model is to be rebuilt.")
@output_option
def rebuild(
    builds: tuple[str, ...], every: bool, jobs: int | None, max_rate: int | None, source: str,
    as_of: str | None, dry_run: bool,
    wait_seconds: float, actor: str, reason: str, output: Output,
) -> None:  # fmt: skip
    """Fill fresh tables of read models from the log, beside those that readers see.

    Without a version it is the one that readers see. Several are filled in one pass: what they read of the log is read
    and decoded once. Interrupted or killed, the same command goes on where it was. Once filled they are handed to the
    workers, which bring them to the log's end. Readers stay where they are until a rebuild is swapped.

    With --source topic records are read from Kafka, which spares the database, and what they are from the log. It is
    refused where the topic does not hold all of them any more.

    With --as-of it is the log up to the first record of each partition that is later, in a schema that is printed.
    Nobody feeds such a build, readers never see it, and it is retired like any other.

    \b
    Examples:
      plant projections rebuild agents --dry-run
      plant projections rebuild agents --reason "its table was changed by hand"
      plant projections rebuild agents skills --max-rate 5000
      plant projections rebuild --all
      plant projections rebuild agents --as-of 2026-11-23T08:00Z
    """
    from operations.cli.rebuilding import Rebuilding, plan_rebuilds

    if every == bool(builds):
        raise click.UsageError("Name read models, or say --all.")
    moment = _past("--as-of", as_of)
    if dry_run:
        show(plan_rebuilds(_settings(), builds, max_rate, moment), output)
        return
    show(Rebuilding(_settings(), builds, actor, reason, moment, source).run(jobs, max_rate, wait_seconds), output)


@click.command()
@click.argument("name", metavar="NAME[/VERSION]")
@wait_option
@output_option
def verify(name: str, wait_seconds: float, output: Output) -> None:
    """Compare a rebuild with the build that readers see; exit 3 where they differ, or nothing was compared.

    Counts and checksums of each table, in one snapshot, while live projection goes on. Rows that differ are named by
    their primary keys, 20 a table.

    \b
    Example:
      plant projections verify agents
    """
    from operations.cli.mismatches import verify_rebuild

    show(verify_rebuild(_settings(), name, wait_seconds), output)


@click.command()
@click.argument("name", metavar="NAME[/VERSION]")
@click.option("--execute", is_flag=True, help="Do it; else the plan is printed. Needs a --reason.")
@wait_option
@actor_option
@click.option("--reason", help="Why; kept permanently.")
@output_option
def repair(name: str, execute: bool, wait_seconds: float, actor: str, reason: str | None, output: Output) -> None:
    """Merge the rows that differ from a rebuild into the build that readers see; the others are left alone.

    The plan counts rows of each table and names 20 by their primary keys: changed, missing or added in what readers
    see. So few rows are merged in a transaction that nobody waits long; killed, the same command goes on.

    The registry needs no rebuild. Its entities are compared with a fold of the log into tables apart, and those that
    were changed directly with their last version. Added ones are named and left.

    \b
    Examples:
      plant projections rebuild agents
      plant projections repair agents
      plant projections repair agents --execute --reason "changed by hand"
    """
    from operations.cli.mismatches import repair_build

    if execute and not reason:
        raise click.UsageError("--execute needs a --reason.")
    show(asyncio.run(repair_build(_settings(), name, execute, wait_seconds, actor, reason or "")), output)


@click.command()
@click.argument("name", metavar="NAME[/VERSION]")
@click.option("--force", is_flag=True, help="Although it was not verified; needs a --reason.")
@wait_option
@actor_option
@click.option("--reason", help="Why; kept permanently.  [default: that it is verified]")
def swap(name: str, force: bool, wait_seconds: float, actor: str, reason: str | None) -> None:
    """Let readers see a rebuild that is verified, from one moment to the next.

    The build that they saw is fed on, until it is retired: see `plant projections rollback`. The first rebuild of a
    version of another shape replaces nothing: it is shown under names of its own, agents_v2 for instance.

    \b
    Examples:
      plant projections swap agents
      plant projections swap agents/2
      plant projections swap agents --force --reason "the live table is broken"
    """
    from operations.cli.rebuilding import swap_rebuild

    if force and not reason:
        raise click.UsageError("--force needs a --reason.")
    click.echo(asyncio.run(swap_rebuild(_settings(), name, force, wait_seconds, actor, reason)), err=True)


@click.command()
@click.argument("name", metavar="NAME[/VERSION]")
@wait_option
@actor_option
@reason_option("Readers are to see what they saw before.")
def rollback(name: str, wait_seconds: float, actor: str, reason: str) -> None:
    """Let readers see the build again that they saw before the last swap: it has every event since.

    \b
    Example:
      plant projections rollback agents --reason "a reader misses rows"
    """
    from operations.cli.rebuilding import roll_back

    click.echo(asyncio.run(roll_back(_settings(), name, wait_seconds, actor, reason)), err=True)


@click.command()
@click.argument("name", metavar="NAME[/VERSION]")
@click.option("--execute", is_flag=True, help="Do it; else the plan is printed.")
@wait_option
@actor_option
@reason_option("It is not needed any more.")
def retire(name: str, execute: bool, wait_seconds: float, actor: str, reason: str) -> None:
    """Drop the build that readers do not see: a rebuild, or what a swap has left.

    NAME is the read model's, or a rebuild's such as agents_b3. A version whose views a later one of another shape has
    beside its own is named with its version, and its views are dropped as well.

    \b
    Examples:
      plant projections retire agents
      plant projections retire agents/1
      plant projections retire agents_b3 --execute
    """
    from operations.cli.rebuilding import retire_build

    click.echo(asyncio.run(retire_build(_settings(), name, execute, wait_seconds, actor, reason)), err=True)


def _past(option: str, text: str | None) -> datetime | None:
    """Return a time that has passed. Raises click's BadParameter."""
    now = datetime.now(UTC)
    moment = read_bound(option, text, now)
    if moment is not None and moment > now:
        raise click.BadParameter("that is in the future", param_hint=option)
    return moment


def _settings() -> Settings:
    from runtime.settings import load_settings

    return load_settings()
