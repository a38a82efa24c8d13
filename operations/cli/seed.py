"""`plant seed`: real data to begin with."""

from __future__ import annotations

import asyncio

import click

from operations.cli.listing import Output, output_option, show


@click.command(name="seed")
@click.option(
    "--tenant", "--governance", "tenant", default="genesis", show_default=True, help="Tenant that they belong to."
)
@output_option
def command(tenant: str, output: Output) -> None:
    """Load ESCO's skills and occupations as entities.

    Doing it again changes nothing. Their ids are ESCO's own, so only one tenant can have them.

    \b
    Examples:
      plant seed
      plant seed --tenant acme --output json

    This service uses the ESCO classification of the European Commission.
    """
    from database.connector import connect
    from entities.store import Written
    from operations.cli.progress import counting
    from operations.seed import esco, seed
    from runtime.settings import load_settings

    settings = load_settings()
    entities = esco(tenant)

    async def work() -> Written:
        database = connect(settings, "writer")
        try:
            await database.assert_least_privilege()
            with counting("Entities", len(entities)) as advance:
                return await seed(database, entities, advance)
        finally:
            await database.close()

    written = asyncio.run(work())
    show([{name: len(ids) for name, ids in written._asdict().items()}], output)
