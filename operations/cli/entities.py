"""`plant entities`: the entities of one tenant."""

from __future__ import annotations

import asyncio

import click

from operations.cli.listing import Output, output_option, show


@click.group(name="entities")
def command() -> None:
    """Look after entities."""


@command.command()
@click.option("--tenant", "--governance", "tenant", default="genesis", show_default=True, help="Tenant to look at.")
@output_option
def check(tenant: str, output: Output) -> None:
    """Report what does not fit together; exit 3 where something does not.

    References to what is missing, retired, never described or of another kind; names that several have; rows of a wrong
    kind; e-mail addresses; entities and versions that were tampered with.

    \b
    Examples:
      plant entities check
      plant entities check --tenant acme --output json
    """
    from database.connector import connect
    from entities.errors import EntitiesInconsistent
    from entities.references import EntityFault
    from entities.references import check_entities as find
    from runtime.settings import load_settings

    settings = load_settings()

    async def work() -> list[EntityFault]:
        database = connect(settings, "api")
        try:
            await database.assert_least_privilege()
            async with database.transaction(tenant, isolation="REPEATABLE READ", read_only=True) as connection:
                return await find(connection)
        finally:
            await database.close()

    findings = asyncio.run(work())
    show([{**finding._asdict(), "entity_id": str(finding.entity_id)} for finding in findings], output)
    if findings:
        raise EntitiesInconsistent(
            why=f"{len(findings)} findings of the tenant {tenant}.",
            next_step="plant entities check --output json",
        )
    click.echo(f"all entities of {tenant} fit together", err=True)
