"""`plant topics`: the Kafka topics that Plant uses."""

from __future__ import annotations

import asyncio

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show


@click.group(name="topics", cls=CommandGroup)
def command() -> None:
    """List Kafka topics, and make the missing ones."""


@command.command(name="list")
@click.option("--topic", "names", multiple=True, help="Only this topic; may be given several times.")
@output_option
def list_topics(names: tuple[str, ...], output: Output) -> None:
    """List the catalogue's topics, and how the brokers have them."""
    from runtime.settings import load_settings
    from streams.topics import CATALOGUE, RETENTION_FOREVER, describe

    settings = load_settings()
    described = asyncio.run(describe(settings))
    rows = []
    for topic in CATALOGUE:
        if names and topic.name not in names:
            continue
        real = described.get(topic.name)
        rows.append(
            {
                "topic": topic.name,
                "state": "present" if real else "missing",
                "partitions": real.partitions if real else None,
                "replicas": real.replicas if real else None,
                "key": topic.key,
                "kept": "permanently"
                if topic.retention_ms == RETENTION_FOREVER
                else f"{topic.retention_ms // 86_400_000} days",
                "id": str(real.topic_id) if real else None,
            }
        )
    show(rows, output)


@command.command()
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@output_option
def apply(dry_run: bool, output: Output) -> None:
    """Create the topics that are missing; change nothing else. Exit 3 where a partition count is not as wanted."""
    from runtime.settings import load_settings
    from streams import topics

    steps = asyncio.run(topics.apply(load_settings(), dry_run=dry_run))
    rows = [
        {
            "topic": step.name,
            "action": step.action,
            "partitions": step.partitions,
            "differences": "; ".join(step.differences),
        }
        for step in steps
    ]
    show(rows, output)
    created = sum(step.action == "create" for step in steps)
    click.echo(f"{created} to create" if dry_run else f"{created} created", err=True)
