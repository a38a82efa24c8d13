"""`plant ingress`: the process that takes webhooks in."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="ingress")
@click.option("--host", help="Address to listen on.  [default: PLANT_INGRESS_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0: any free one.  [default: PLANT_INGRESS_PORT]")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the address here, as JSON, once requests are taken.",
)
def command(host: str | None, port: int | None, ready_file: Path | None) -> None:
    """Serve the webhooks that events come in by."""
    from ingress.server import run
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    run(
        settings,
        host=host or settings.ingress_host,
        port=settings.ingress_port if port is None else port,
        ready_file=ready_file,
        say=lambda line: click.echo(line, err=True),
    )
