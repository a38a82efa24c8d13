"""`plant db`: the schema of the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from database.migrate import Migration


@click.group(name="db", cls=CommandGroup)
def command() -> None:
    """Migrate the database, and say where it is.

    \b
    Examples:
      plant db upgrade
      plant db check && plant worker
      plant db pending
      plant db sql --since 006 | less
    """


@command.command()
@click.option("--revision", default="heads", show_default=True, help="Revision to migrate to.")
def upgrade(revision: str) -> None:
    """Migrate up, as plant_owner; doing it again changes nothing."""
    from database import migrate
    from projections.install import install

    url = _owner_url()
    before = migrate.current(url)
    after = migrate.upgrade(url, revision)
    behind = install(url)
    click.echo(f"migrated from {_named(before)}" if after != before else "nothing to do", err=True)
    for model in behind:
        click.echo(
            f"readers do not see version {model.version} of {model.name} yet: they will once workers of this version"
            " have brought it up to the log's end",
            err=True,
        )
    click.echo(_named(after))


@command.command()
def current() -> None:
    """Print the revision that the database is at."""
    from database import migrate

    click.echo(_named(migrate.current(_owner_url())))


@command.command()
def check() -> None:
    """Exit 3 unless the database is at the revision that this version of Plant needs."""
    from database.schema_revision import needed_revisions, require_current_schema

    require_current_schema(_owner_url())
    click.echo(_named(needed_revisions()))


@command.command()
@output_option
def pending(output: Output) -> None:
    """List the migrations that `plant db upgrade` would run, in their order; it changes nothing."""
    from database import migrate

    waiting = [migration for migration in migrate.history(_owner_url()) if not migration.applied]
    show([_shown(migration) for migration in waiting], output)
    if not waiting:
        click.echo("nothing is pending", err=True)


@command.command()
@output_option
def history(output: Output) -> None:
    """List every migration of this version in its order, and which of them the database has."""
    from database import migrate

    show([_shown(migration) for migration in migrate.history(_owner_url())], output)


@command.command(name="sql")
@click.option("--revision", default="heads", show_default=True, help="Revision to migrate to.")
@click.option("--since", default="", help="Revision to begin from.  [default: an empty database]")
def show_sql(revision: str, since: str) -> None:
    """Print the SQL of an upgrade, to read it or to run it by hand; no database is asked."""
    from database import migrate

    click.echo(migrate.sql(revision, since=since))


def _owner_url() -> str:
    from runtime.settings import load_settings

    return load_settings().database_address("owner")


def _shown(migration: Migration) -> dict[str, object]:
    state = "applied" if migration.applied else "pending"
    return {"revision": migration.revision, "state": state, "about": migration.about}


def _named(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "empty"
