"""`plant projections`: the builds of read models, and the lock of their versions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from operations.cli import rebuilds
from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show
from operations.operator_actions import OperatorAction, actor_option, reason_option, record
from runtime.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from projections.build_states import BuildState
    from runtime.settings import Settings

COLUMNS: Final = ("name", "version", "state", "lag", "lag_seconds", "last_error")
PARTITION_COLUMNS: Final = (
    *("name", "version", "state", "topic", "partition", "next_offset", "lag", "lag_seconds", "last_error"),
)


@click.group(name="projections", cls=CommandGroup)
def command() -> None:
    """Show, rebuild, pause and check read models."""


for each in (rebuilds.rebuild, rebuilds.verify, rebuilds.repair, rebuilds.swap, rebuilds.rollback, rebuilds.retire):
    command.add_command(each)


@command.command(name="list")
@click.option("--partitions", is_flag=True, help="A row for each build and partition, with its next offset.")
@output_option
def list_projections(partitions: bool, output: Output) -> None:
    """List every build of a read model, and how far behind the log it is.

    A build is `live` when readers see it, `filling` until it has the whole log, `standby` where it is fed beside the
    one that readers see, `stopped` where a partition goes on without it, for the reason in the last column, `paused` by
    an operator, `left` when readers have gone over to a later version: it is fed no more, and `past` where it is the
    log up to a time. The lag counts records between its checkpoint and the log's, of all partitions together; in
    seconds it is the age of the oldest of them. JSON has each partition's next offset.

    \b
    Examples:
      plant projections list
      plant projections list --partitions
      plant projections list --output json
    """
    from runtime.settings import load_settings

    states = [each for each in asyncio.run(_read(load_settings())) if each.state != "retired"]
    if partitions:
        rows = [{**_row(state), **each} for state in states for each in _partitions(state)]
        show(rows, output, columns=PARTITION_COLUMNS)
    else:
        show([{**_row(state), "partitions": _partitions(state)} for state in states], output, columns=COLUMNS)


@command.command(name="show")
@click.argument("name")
@output_option
def show_projection(name: str, output: Output) -> None:
    """Show every build of a read model, retired ones too: who began it and why, and what became of it.

    \b
    Examples:
      plant projections show agents
      plant projections show agents_b3 --output json
    """
    import msgspec

    from projections.build_states import BuildName, UnknownBuild
    from runtime.settings import load_settings

    build = BuildName.parse(name)
    states = [state for state in asyncio.run(_read(load_settings())) if build.of(state)]
    if not states:
        raise UnknownBuild(name)
    rebuilds_of = [msgspec.to_builtins(state.rebuild) if state.rebuild else {} for state in states]
    if output != "table":
        rows = [{**_row(each), "rebuild": rebuild or None} for each, rebuild in zip(states, rebuilds_of, strict=True)]
        show([{**row, "partitions": _partitions(each)} for row, each in zip(rows, states, strict=True)], output)
        return
    fields = [{**_row(each), **rebuild} for each, rebuild in zip(states, rebuilds_of, strict=True)]
    for number, row in enumerate(fields):
        if number:
            click.echo()
        show([{"field": field.replace("_", " "), "value": value} for field, value in row.items()], output)


async def _read(settings: Settings) -> Sequence[BuildState]:
    from database.connector import connect
    from projections.build_states import build_states

    database = connect(settings, "operator")
    try:
        return await build_states(database)
    finally:
        await database.close()


def _row(state: BuildState) -> dict[str, object]:
    return {
        "name": state.name,
        "version": state.version,
        "state": state.state,
        "lag": state.lag,
        "lag_seconds": state.lag_seconds,
        "last_error": _shown_error(state.last_error),
    }


def _partitions(state: BuildState) -> list[dict[str, object]]:
    import msgspec

    return [{**msgspec.structs.asdict(each), "last_error": _shown_error(each.last_error)} for each in state.partitions]


def _shown_error(error: str | None) -> str | None:
    return None if error is None else redact(error)


@command.command()
@click.argument("build", metavar="NAME[/VERSION]")
@actor_option
@reason_option("The read model is to be left out for now.")
def pause(build: str, actor: str, reason: str) -> None:
    """Let workers leave a read model out: it stays where it is, and readers see it as it is then.

    Workers notice it within about two seconds. The log and the other read models go on.

    \b
    Examples:
      plant projections pause agents --reason "its table is moved"
      plant projections pause agents/2
    """
    from runtime.settings import load_settings

    click.echo(asyncio.run(_switch(load_settings(), build, True, actor, reason)), err=True)


@command.command()
@click.argument("build", metavar="NAME[/VERSION]")
@actor_option
@reason_option("The read model is to be fed again.")
def resume(build: str, actor: str, reason: str) -> None:
    """Let workers feed a paused read model again, from where it is.

    Workers bring it up to the log's end next to live records: plant projections list shows how far it is.

    \b
    Examples:
      plant projections resume agents
    """
    from runtime.settings import load_settings

    click.echo(asyncio.run(_switch(load_settings(), build, False, actor, reason)), err=True)


async def _switch(settings: Settings, build: str, paused: bool, actor: str, reason: str) -> str:
    from database.connector import connect
    from projections.build_states import BuildName, UnknownBuild, build_states, set_paused

    verb, name = "pause" if paused else "resume", BuildName.parse(build)
    database = connect(settings, "operator")
    try:
        meant = [state for state in await build_states(database) if name.of(state) and state.state != "retired"]
        if not meant:
            raise UnknownBuild(build)
        if all(state.paused == paused for state in meant):
            return f"{build} is {verb}d; nothing to do"
        await record(settings, OperatorAction(action=f"projections.{verb}", target=build, reason=reason, actor=actor))
        await set_paused(database, name, paused)
    finally:
        await database.close()
    return f"{verb}d {build}"


@command.command("check")
def check_projections() -> None:
    """Refuse a read model whose SQL was changed under its version; exit 3 names it.

    Checked: the hash of tables.sql and apply.sql against the lock, which has one line a version, and that lock against
    the last commit.
    """
    from projections.locked_versions import ReadModelsRefused, lock_problems, locked_versions, versions_of_last_commit
    from projections.read_model import READ_MODELS

    committed = versions_of_last_commit()
    if committed is None:
        click.echo("No committed lock to compare with: whether lines were changed was not checked.", err=True)
    if problems := lock_problems(READ_MODELS, locked_versions(), committed):
        raise ReadModelsRefused(problems)
    click.echo(f"As they are locked: {', '.join(model.key for model in READ_MODELS)}.", err=True)


@command.command("lock")
def lock_projections() -> None:
    """Lock the SQL of versions that are new, in projections/locked_versions.json."""
    from projections.locked_versions import LOCK_FILE, locked_versions, render, versions_to_lock
    from projections.read_model import READ_MODELS

    locked = locked_versions()
    added = versions_to_lock(READ_MODELS, locked)
    if added:
        LOCK_FILE.write_text(render([*locked, *added]), "utf-8")
    for version in added:
        click.echo(f"{version.name}\t{version.version}\t{version.sha256}")
    if not added:
        click.echo("Every version is locked already.", err=True)
