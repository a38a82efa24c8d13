"""`plant db`: the schema of the database."""

from __future__ import annotations

import click

from operations.cli.groups import CommandGroup


@click.group(name="db", cls=CommandGroup)
def command() -> None:
    """Migrate the database, and say where it is.

    \b
    Examples:
      plant db upgrade
      plant db check && plant worker
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
    install(url)
    click.echo(f"migrated from {_named(before)}" if after != before else "nothing to do", err=True)
    click.echo(_named(after))


@command.command()
def current() -> None:
    """Print the revision that the database is at."""
    from database import migrate

    click.echo(_named(migrate.current(_owner_url())))


@command.command()
def check() -> None:
    """Exit 3 unless the database is at the revision that this version of Plant needs."""
    from database import migrate

    migrate.require_current_schema(_owner_url())
    click.echo(_named(migrate.heads()))


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


def _named(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "empty"
