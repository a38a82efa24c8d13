"""`plant embed`: compute the embeddings of skills."""

from __future__ import annotations

import click


@click.command(name="embed")
@click.option("--once", is_flag=True, help="Embed what is new or changed now, and exit.")
def command(once: bool) -> None:
    """Compute embeddings of skills until Ctrl-C.

    Reads the skills that the read model marketplace knows, every five seconds, and writes an embedding for each whose
    text is new or changed. Similar skills are found by them (docs/how-to/marketplace.md). It can be ended at any
    moment, and started again. Needs the address of plant_embedder.

    \b
    Examples:
      plant embed
      plant embed --once
    """
    from operations.services.embedding import serve_embeddings
    from runtime.lifecycle import run_service
    from runtime.logging import configure
    from runtime.settings import load_settings

    settings = load_settings()
    configure(settings)
    embedded = run_service(serve_embeddings(settings, once=once))
    if once:
        click.echo(f"{embedded} skills embedded.", err=True)
