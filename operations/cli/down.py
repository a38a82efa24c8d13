"""`plant down`."""

from __future__ import annotations

import click


@click.command(name="down")
@click.option("--delete-data", is_flag=True, help="Also remove topics, tables, logs and passwords, for good.")
def command(delete_data: bool) -> None:
    """Stop the local stack; its data is kept.

    Kafka and Postgres are stopped cleanly. The next `plant up` finds everything as it was.
    """
    from operations.local_stack import stack_here

    stack = stack_here()
    stopped = stack.down(delete_data=delete_data)
    names = " and ".join([part for part in (", ".join(stopped[:-1]), *stopped[-1:]) if part])
    click.echo(f"Stopped {names}." if names else "Nothing was running.", err=True)
    if delete_data:
        click.echo(f"Removed the data of {stack.home}.", err=True)
