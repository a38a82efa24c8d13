"""`plant deliverer`: send deliveries to endpoints."""

from __future__ import annotations

import click


@click.command(name="deliverer")
def command() -> None:
    """Send deliveries to endpoints until Ctrl-C. Start several: they share the partitions.

    It takes deliveries from genesis.deliveries and the retry topics, sends each as a signed request, and writes what
    came of it to genesis.deliveries.attempts. What has failed too often goes to genesis.deliveries.dead. On Ctrl-C
    attempts under way end first.

    \b
    Examples:
      plant deliverer
      PLANT_DELIVERIES_ALLOWED_NETWORKS=10.1.0.0/16 plant deliverer
    """
    from operations.services.deliverer import serve_deliverer
    from runtime.lifecycle import run_service
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    run_service(serve_deliverer(settings))
