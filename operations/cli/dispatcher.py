"""`plant dispatcher`: make deliveries of the events that endpoints ask for."""

from __future__ import annotations

import click


@click.command(name="dispatcher")
@click.option("--topic", default="genesis.events", show_default=True, help="Topic of the events.")
@click.option(
    "--deliveries-topic", default="genesis.deliveries", show_default=True, help="Topic to publish deliveries to."
)
def command(topic: str, deliveries_topic: str) -> None:
    """Match events to endpoints until Ctrl-C.

    It publishes a delivery of each event for each endpoint that asks for it. It follows the log that workers write: an
    event is dispatched once it is applied. Start several: they share the partitions.

    \b
    Examples:
      plant dispatcher
      PLANT_LOG_LEVEL=debug plant dispatcher
    """
    from operations.services.dispatcher import serve_dispatcher
    from runtime.lifecycle import run_service
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    run_service(serve_dispatcher(settings, topic, deliveries_topic))
