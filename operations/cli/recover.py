"""`plant recover`: an empty database filled again from Kafka's topics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from operations.cli.listing import Output, output_option, show
from operations.operator_actions import actor_option, reason_option

if TYPE_CHECKING:
    from audit.verifier.heads import Head
    from operations.recovery import DatabaseRecovery, DispatchPosition


@click.command(name="recover")
@click.option(
    "--heads",
    "head_files",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="Chain heads kept from `plant audit head`, to compare with; may be given several times.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Partitions at a time.  [default: one a processor, at most 4]")
@click.option("--list", "only_list", is_flag=True, help="Print what no topic holds, and how to keep it; do nothing.")
@actor_option
@reason_option("The database was lost.")
@output_option
def command(
    head_files: tuple[Path, ...], jobs: int | None, only_list: bool, actor: str, reason: str, output: Output
) -> None:
    """Fill an empty database from the topics.

    Log, chain and read models. The database is new, and `plant db upgrade` has made its tables. Stop all other
    processes before. Workers' own code judges each record, so the chains come out as they were; --heads compares them,
    and exit 3 names the first entry that differs. Interrupted or killed, the same command goes on where it was. Nothing
    is delivered.

    What no topic holds is listed by --list: keys, tokens and endpoints, for example. Keep a copy of that elsewhere.

    \b
    Examples:
      plant recover --list
      plant recover --heads heads.json --reason "its disk was lost"
    """
    from audit.verifier.heads import load
    from runtime.errors import NothingChecked

    if only_list:
        _show_lost(output)
        return
    kept = [head for file in head_files for head in load(file)]
    if head_files and not kept:
        raise NothingChecked(
            "No head is in these files.", why="Nothing would be compared.", next_step="plant audit head"
        )
    show([_recovered(kept, jobs, actor, reason)], output)


def _recovered(kept: Sequence[Head], jobs: int | None, actor: str, reason: str) -> Mapping[str, Any]:
    from operations.recovery import DatabaseRecovery
    from projections.recovery.errors import RecoveryInterrupted
    from runtime.settings import load_settings

    with DatabaseRecovery(load_settings()).held() as recovery:
        try:
            return asyncio.run(_run(recovery, kept, jobs, actor, reason))
        except KeyboardInterrupt as error:
            raise RecoveryInterrupted(
                why="Batches that were committed stay.", next_step="plant recover    # goes on from there"
            ) from error


async def _run(
    recovery: DatabaseRecovery, kept: Sequence[Head], jobs: int | None, actor: str, reason: str
) -> Mapping[str, Any]:
    import time

    from operations.cli.progress import rated
    from projections.rebuild.fill import jobs_for

    left = await recovery.begin(actor, reason)
    total, running, began_at = sum(left.values()), jobs_for(len(left), jobs), time.monotonic()
    with rated("recovering", total) as advance:
        await recovery.run(left, running, advance)
    seconds = time.monotonic() - began_at
    compared = _compare(recovery, kept)
    for line in recovery.lagging():
        click.echo(line, err=True)
    _say_where_dispatch_goes_on(await recovery.end())
    click.echo("what no topic holds is not recovered: plant recover --list", err=True)
    return {
        "records": total, "partitions": len(left), "seconds": round(seconds, 1),
        "records_per_second": round(total / seconds) if total else 0, "jobs": running, "heads": compared,
    }  # fmt: skip


def _compare(recovery: DatabaseRecovery, kept: Sequence[Head]) -> int:
    """Return how many chains were compared. Raises HeadMismatch, once each difference was named."""
    from projections.recovery.errors import HeadMismatch

    compared = recovery.compare(kept)
    different = [each for each in compared if not each.same]
    for each in different:
        first = "" if each.first is None else f" The first entry that differs is at {each.first}."
        click.echo(f"{each.topic}/{each.partition}@{each.offset}: another hash.{first} {each.why}", err=True)
    if different:
        raise HeadMismatch(
            f"{len(different)} of {len(compared)} chains are not those whose heads were kept.",
            why="All is recovered, and the recovery is not ended: dispatchers and the relay wait for it.",
            next_step="plant recover    # without --heads ends it as it is",
        )
    return len(compared)


def _say_where_dispatch_goes_on(positions: Sequence[DispatchPosition]) -> None:
    unknown = [each for each in positions if not each.known and each.next_offset]
    if unknown:
        listed = ", ".join(f"{each.partition}@{each.next_offset}" for each in unknown)
        click.echo(
            f"dispatch goes on at the log's end, where the topic has no delivery of a partition: {listed}", err=True
        )


def _show_lost(output: Output) -> None:
    from operations.recovered_tables import FILLED_LATER, LOST, backup_command

    show([each._asdict() for each in LOST], output)
    click.echo(f"keep them elsewhere: {backup_command()}", err=True)
    for way in dict.fromkeys(FILLED_LATER.values()):
        click.echo(f"filled {way}: {', '.join(name for name, how in FILLED_LATER.items() if how == way)}", err=True)
