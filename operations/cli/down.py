"""`plant down`."""

from __future__ import annotations

import click


@click.command(name="down")
@click.option("--delete-data", is_flag=True, help="Also remove topics, tables, logs and passwords, permanently.")
@click.option("--execute", is_flag=True, help="Delete; without this --delete-data prints its plan.")
def command(delete_data: bool, execute: bool) -> None:
    """Stop the local stack; its data is kept.

    Kafka and Postgres are stopped cleanly. The next `plant up` finds everything as it was. With --delete-data, nothing
    is stopped or removed without --execute.

    \b
    Examples:
      plant down
      plant down --delete-data
      plant down --delete-data --execute
    """
    from operations.local_stack import stack_here

    if execute and not delete_data:
        raise click.UsageError("--execute is for --delete-data; plain `plant down` keeps the data and needs none.")
    stack = stack_here()
    if delete_data and not execute:
        running = _listed([service.name for service in stack.status() if service.state != "stopped"])
        first = f"would stop {running}, and " if running else "would "
        if stack.home.exists():
            lost = "topics, tables, logs, passwords and the master key"
            click.echo(f"{first}remove the data of {stack.home}: {lost}; add --execute to do it", err=True)
        else:
            click.echo(f"There is no stack in {stack.home}; nothing to do.", err=True)
        return
    names = _listed(stack.down(delete_data=delete_data))
    click.echo(f"Stopped {names}." if names else "Nothing was running.", err=True)
    if delete_data:
        click.echo(f"Removed the data of {stack.home}.", err=True)


def _listed(names: list[str]) -> str:
    return " and ".join([part for part in (", ".join(names[:-1]), *names[-1:]) if part])
