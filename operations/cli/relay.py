"""`plant relay`: publish the changes of entities that were made in the database, and the dead letters."""

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
@click.option("--topic", default="genesis.events", show_default=True, help="Topic to publish changes to.")
@click.option(
    "--dead-topic", default="genesis.events.dead", show_default=True, help="Topic to publish dead letters to."
)
def command(once: bool, lock_seconds: float, topic: str, dead_topic: str) -> None:
    """Publish direct changes, and dead letters, until Ctrl-C.

    Direct changes are those made in the database itself (docs/how-to/direct-changes.md), dead letters the records that
    workers could not apply (docs/how-to/dead-letters.md). Start several: one is active, the others stand by. A row
    that maps to no event blocks its own entity and no other; with --once it is exit code 3.

    \b
    Examples:
      plant relay
      plant relay --once
    """
    from operations.services.relay import serve_relay
    from runtime.lifecycle import run_service
    from runtime.logging import configure
    from runtime.settings import load_settings
    from streams.topics import EVENTS_TOPIC

    if dead_topic.partition("-")[0] == EVENTS_TOPIC:
        raise click.BadParameter(
            "workers read that topic: its dead letters would become poison", param_hint="--dead-topic"
        )
    settings = load_settings()
    configure(settings)
    relay = run_service(serve_relay(settings, topic, dead_topic, lock_seconds if once else None))
    if once:
        click.echo(f"{relay.sent_rows} rows and {relay.dead_letters} dead letters published.", err=True)
