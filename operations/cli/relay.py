"""`plant relay`: publish the changes of entities that were made in the database."""

from __future__ import annotations

import click


@click.command(name="relay")
@click.option("--once", is_flag=True, help="Publish what waits now, and exit.")
@click.option(
    "--lock-seconds",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="With --once: how long to wait while another relay is active.",
)
@click.option("--topic", default="genesis.events", show_default=True, help="Topic to publish to.")
def command(once: bool, lock_seconds: float, topic: str) -> None:
    """Publish changes made in the database until Ctrl-C.

    Start several: one is active, the others stand by. A row of which no event can be made holds up its entity alone;
    docs/how-to/direct-changes.md says what to do with it. With --once such rows are exit code 3.

    \b
    Examples:
      plant relay
      plant relay --once
    """
    import uvloop

    from operations.relaying import serve
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    sent = uvloop.run(serve(settings, topic, lock_seconds if once else None))
    if once:
        click.echo(f"{sent} rows published.", err=True)
