"""`plant ingress`: the process that receives webhooks."""

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
@click.option(
    "--processes", type=click.IntRange(1, 64), help="Processes on the port.  [default: PLANT_INGRESS_PROCESSES]"
)
@click.option("--parent-pipe", type=int, hidden=True)
def command(
    host: str | None, port: int | None, ready_file: Path | None, processes: int | None, parent_pipe: int | None
) -> None:
    """Serve the webhooks that bring events in.

    \b
    Examples:
      plant ingress
      plant ingress --port 0 --ready-file ready.json
      plant ingress --processes 4
    """
    from operations.services.ingress import serve_ingress, serve_several
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    host, port = host or settings.ingress_host, settings.ingress_port if port is None else port
    count = processes or settings.ingress_processes

    def say(line: str) -> None:
        if parent_pipe is None:
            click.echo(line, err=True)

    if count == 1:
        serve_ingress(settings, host=host, port=port, ready_file=ready_file, say=say, parent_pipe=parent_pipe)
    else:
        serve_several(settings, count, host=host, port=port, ready_file=ready_file, say=say)
