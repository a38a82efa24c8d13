"""`plant worker`: project events into the log, the audit chain and the read models."""

from __future__ import annotations

import click


@click.command(name="worker")
@click.option("--topic", "topics", multiple=True, help="Topic to project; repeat for several. Default: all of Plant's.")
def command(topics: tuple[str, ...]) -> None:
    """Run one worker until Ctrl-C. Start several: they share the partitions.

    \b
    Examples:
      plant worker
      PLANT_LOG_LEVEL=debug plant worker
    """
    from operations.services.worker import TOPICS, serve_worker
    from runtime.lifecycle import run_service
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    run_service(serve_worker(settings, topics or TOPICS))
