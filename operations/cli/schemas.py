"""`plant schemas`: list, check and lock schemas, and register them with an external registry."""

from __future__ import annotations

from pathlib import Path

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show


@click.group(name="schemas", cls=CommandGroup)
def command() -> None:
    """Show event schemas, and refuse incompatible changes."""


@command.command("list")
@output_option
def list_schemas(output: Output) -> None:
    """List every locked schema with its registry id, oldest first."""
    from schemas.registry import bundled

    rows = [
        {
            "id": version.id,
            "subject": version.subject,
            "version": version.version,
            "sha256": version.sha256,
            "schema": version.schema,
        }
        for version in bundled().versions
    ]
    show(rows, output, columns=("id", "subject", "version", "sha256"))


@command.command("check")
def check_schemas() -> None:
    """Refuse schemas that would make a record unreadable; exit 3 names field and rule.

    Checked: Plant's schema rules, FULL_TRANSITIVE and limits against all earlier versions, the `.avsc` files and the
    reference page against the structs, and the registry's ids against the last commit.
    """
    from operations.reference.events import REFERENCE_FILE, events_page
    from schemas.compatibility_gate import SchemaProblem, committed_versions, refuse, schema_problems
    from schemas.registry import bundled

    committed = committed_versions()
    if committed is None:
        click.echo("No committed registry to compare ids with: whether ids were changed was not checked.", err=True)
    refuse(schema_problems(bundled(), committed))
    # An installed package comes without the docs folder.
    if not REFERENCE_FILE.exists():
        click.echo(f"No {REFERENCE_FILE.name} to compare the structs with: it was not checked.", err=True)
    elif REFERENCE_FILE.read_text("utf-8") != events_page():
        refuse([SchemaProblem(REFERENCE_FILE.name, "", "differs from the structs; run: plant schemas docs")])
    click.echo(f"{len(bundled().versions)} schemas are compatible, locked and up to date.", err=True)


@command.command("generate")
def generate_files() -> None:
    """Write the `.avsc` files from the event structs."""
    from schemas.generation import AVRO_FOLDER, stale_files

    AVRO_FOLDER.mkdir(exist_ok=True)
    for path, text in stale_files().items():
        if text:
            path.write_text(text, "utf-8")
        else:
            path.unlink()
        click.echo(path.name)


@command.command("lock")
def lock_versions() -> None:
    """Give changed schemas the next version and registry id, after the check of their evolution."""
    from schemas.compatibility_gate import lock_schemas, write_lock
    from schemas.registry import bundled

    added = lock_schemas(bundled())
    write_lock(added)
    for version in added:
        click.echo(f"{version.id}\t{version.subject}\t{version.version}")
    if not added:
        click.echo("Every schema is locked already.", err=True)


@command.command("docs")
def write_page() -> None:
    """Write docs/reference/events.md from the event structs."""
    from operations.reference.events import REFERENCE_FILE, events_page

    REFERENCE_FILE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE_FILE.write_text(events_page(), "utf-8")
    click.echo(str(REFERENCE_FILE))


@command.command("register")
@click.option("--execute", is_flag=True, help="Register, and write the ids file; without it only the plan is shown.")
@output_option
def register_schemas(execute: bool, output: Output) -> None:
    """Register the schemas with PLANT_SCHEMA_REGISTRY_URL.

    Ids that differ from the bundled ones are added to PLANT_SCHEMA_IDS_FILE. Keep that file as long as the log: it
    names the schemas that the ids in the records stand for, even where the registry is gone.
    """
    from runtime.errors import ConfigurationError
    from runtime.settings import load_settings
    from schemas.external_registry import plan_registration, register_missing

    settings = load_settings()
    file = Path(settings.schema_ids_file) if settings.schema_ids_file else None
    if not settings.schema_registry_url:
        raise ConfigurationError(
            "No external registry to register with.",
            why="PLANT_SCHEMA_REGISTRY_URL is not set.",
            next_step="plant settings",
        )
    if execute:
        added = register_missing(settings.schema_registry_url, file)
        rows = [{"id": entry.id, "own_id": entry.own_id, "subject": entry.subject} for entry in added]
        show(rows, output, columns=("id", "own_id", "subject"))
        click.echo(f"{len(added)} ids were added to the ids file.", err=True)
        return
    plan = plan_registration(settings.schema_registry_url)
    rows = [
        {
            "id": external_id,
            "own_id": version.id,
            "subject": version.subject,
            "action": "keep" if external_id else "register",
        }
        for version, external_id in plan
    ]
    show(rows, output, columns=("id", "own_id", "subject", "action"))
    click.echo("Nothing was changed; add --execute.", err=True)
