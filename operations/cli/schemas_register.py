"""`plant schemas register`."""

from __future__ import annotations

from pathlib import Path

import click

from operations.cli.listing import Output, output_option, show


@click.command("register")
@click.option("--execute", is_flag=True, help="Register, and write the ids file; without it only the plan is shown.")
@output_option
def command(execute: bool, output: Output) -> None:
    """Register the schemas with PLANT_SCHEMA_REGISTRY_URL.

    Ids that differ from the bundled ones are added to PLANT_SCHEMA_IDS_FILE. Keep that file as long as the log: it says
    what the ids in the records stand for, whatever becomes of the registry.
    """
    from runtime.errors import ConfigurationError
    from runtime.settings import load_settings
    from schemas.external_registry import planned, register

    settings = load_settings()
    file = Path(settings.schema_ids_file) if settings.schema_ids_file else None
    if not settings.schema_registry_url:
        raise ConfigurationError(
            "No external registry to register with.",
            why="PLANT_SCHEMA_REGISTRY_URL is not set.",
            next_step="plant settings",
        )
    if execute:
        added = register(settings.schema_registry_url, file)
        rows = [{"id": entry.id, "own_id": entry.own_id, "subject": entry.subject} for entry in added]
        show(rows, output, columns=("id", "own_id", "subject"))
        click.echo(f"{len(added)} ids were added to the ids file.", err=True)
        return
    plan = planned(settings.schema_registry_url)
    rows = [
        {"id": outside, "own_id": version.id, "subject": version.subject, "action": "keep" if outside else "register"}
        for version, outside in plan
    ]
    show(rows, output, columns=("id", "own_id", "subject", "action"))
    click.echo("Nothing was changed; add --execute.", err=True)
