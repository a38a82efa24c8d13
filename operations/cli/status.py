"""`plant status`."""

from __future__ import annotations

import click

from operations.cli.listing import Output, output_option, show


@click.command(name="status")
@output_option
@click.pass_context
def command(context: click.Context, output: Output) -> None:
    """Show what runs, and where; exit 3 unless all of it does.

    A service is `running` when it answers, `unresponsive` when its process is there but does not, else `stopped`.
    """
    from operations.cli.up import STATUS_COLUMNS, status_rows
    from operations.local_stack import stack_here

    services = stack_here().status()
    show(status_rows(services), output, columns=STATUS_COLUMNS)
    if any(service.state != "running" for service in services):
        context.exit(3)
