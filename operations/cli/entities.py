"""`plant entities`: the entities of one tenant."""

from __future__ import annotations

import asyncio

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show


@click.group(name="entities", cls=CommandGroup)
def command() -> None:
    """Look after entities."""


@command.command()
@click.option("--tenant", "--governance", "tenant", help="Tenant to look at.  [default: genesis]")
@output_option
def check(tenant: str | None, output: Output) -> None:
    """Report what does not fit together; exit 3 where something does not.

    Exit 3 as well where a tenant is named that has no entities: nothing was checked.

    References to what is missing, retired, never described or of another kind; names that several have; rows of a wrong
    kind; e-mail addresses; entities and versions that were tampered with.

    \b
    Examples:
      plant entities check
      plant entities check --tenant acme --output json
    """
    from database.connector import connect
    from entities.errors import EntitiesInconsistent
    from entities.references import EntityCheck
    from entities.references import check_entities as find
    from entities.vocabulary import DEFAULT_TENANT
    from runtime.errors import NothingChecked
    from runtime.settings import load_settings

    if tenant == "":
        raise click.BadParameter("a tenant has a name.", param_hint="--tenant")
    settings, named = load_settings(), DEFAULT_TENANT if tenant is None else tenant

    async def work() -> EntityCheck:
        database = connect(settings, "api")
        try:
            await database.assert_least_privilege()
            async with database.transaction(named, isolation="REPEATABLE READ", read_only=True) as connection:
                return await find(connection)
        finally:
            await database.close()

    checked = asyncio.run(work())
    show([{**fault._asdict(), "entity_id": str(fault.entity_id)} for fault in checked.faults], output)
    if checked.faults:
        raise EntitiesInconsistent(
            why=f"{len(checked.faults)} findings of the tenant {named}.",
            next_step="plant entities check --output json",
        )
    if not checked.entities and tenant is not None:
        raise NothingChecked(why=f"The tenant {named!r} has no entities.", next_step="plant entities check")
    if not checked.entities:
        click.echo(f"the tenant {named} has no entities: nothing was checked", err=True)
        return
    click.echo(f"all entities of {named} fit together: {checked.entities} were checked", err=True)
