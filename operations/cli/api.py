"""`plant api`: the process that answers readers."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="api")
@click.option("--host", help="Address to listen on.  [default: PLANT_API_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0: any free one.  [default: PLANT_API_PORT]")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the address here, as JSON, once readers are answered.",
)
def command(host: str | None, port: int | None, ready_file: Path | None) -> None:
    """Serve the read models to readers with a token.

    Tokens are made by `plant tokens add`. docs/how-to/read.md says how to read.

    \b
    Examples:
      plant api
      plant api --port 0 --ready-file ready.json
      plant api --host 0.0.0.0 --port 8082
    """
    from operations.services.api import serve_api
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    host, port = host or settings.api_host, settings.api_port if port is None else port
    serve_api(settings, host=host, port=port, ready_file=ready_file, say=lambda line: click.echo(line, err=True))
