"""`plant schemas`."""

from __future__ import annotations

import click

from operations.cli.listing import Output, output_option, show
from operations.cli.schemas_register import command as register


@click.group(name="schemas")
def command() -> None:
    """Show event schemas, and refuse incompatible changes."""


command.add_command(register)


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


@command.command()
def check() -> None:
    """Refuse schemas that would make a record unreadable; exit 3 names field and rule.

    Checked: Plant's schema rules, FULL_TRANSITIVE against all earlier versions, the `.avsc` files and the reference
    page against the structs, and the registry's ids against the last commit.
    """
    from operations.reference.events import REFERENCE_FILE, reference
    from schemas.compatibility_gate import SchemaProblem, committed_versions, refuse, schema_problems
    from schemas.registry import bundled

    committed = committed_versions()
    if committed is None:
        click.echo("No committed registry to compare ids with.", err=True)
    refuse(schema_problems(bundled(), committed))
    # An installed package comes without the docs folder.
    if REFERENCE_FILE.exists() and REFERENCE_FILE.read_text("utf-8") != reference():
        refuse([SchemaProblem(REFERENCE_FILE.name, "", "differs from the structs; run: plant schemas docs")])
    click.echo(f"{len(bundled().versions)} schemas are compatible, locked and up to date.", err=True)


@command.command()
def generate() -> None:
    """Write the `.avsc` files from the event structs."""
    from schemas.generation import AVRO_FOLDER, stale_files

    AVRO_FOLDER.mkdir(exist_ok=True)
    for path, text in stale_files().items():
        if text:
            path.write_text(text, "utf-8")
        else:
            path.unlink()
        click.echo(path.name)


@command.command()
def lock() -> None:
    """Give changed schemas the next version and registry id, after the check of their evolution."""
    from schemas.compatibility_gate import lock_schemas as versions_to_lock
    from schemas.compatibility_gate import write_lock
    from schemas.registry import bundled

    added = versions_to_lock(bundled())
    write_lock(added)
    for version in added:
        click.echo(f"{version.id}\t{version.subject}\t{version.version}")
    if not added:
        click.echo("Every schema is locked already.", err=True)


@command.command()
def docs() -> None:
    """Write docs/reference/events.md from the event structs."""
    from operations.reference.events import REFERENCE_FILE, reference

    REFERENCE_FILE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE_FILE.write_text(reference(), "utf-8")
    click.echo(str(REFERENCE_FILE))
