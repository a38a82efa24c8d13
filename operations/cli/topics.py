"""`plant topics`: the Kafka topics that Plant uses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from streams.topics import Description, Topic


@click.group(name="topics", cls=CommandGroup)
def command() -> None:
    """List Kafka topics, and make the missing ones."""


@command.command(name="list")
@click.option("--topic", "names", multiple=True, help="Only this topic; may be given several times.")
@output_option
def list_topics(names: tuple[str, ...], output: Output) -> None:
    """List the catalogue's topics, and how the brokers have them.

    A named topic is listed as well where only the brokers have it. Exit 3 where neither does.
    """
    from runtime.errors import NothingListed
    from runtime.settings import load_settings
    from streams.topics import CATALOGUE, describe

    catalogue = {topic.name: topic for topic in CATALOGUE}
    wanted = list(dict.fromkeys(names)) or list(catalogue)
    described = asyncio.run(describe(load_settings(), wanted))
    listed = [name for name in wanted if name in catalogue or name in described]
    show([_row(name, catalogue.get(name), described.get(name)) for name in listed], output)
    unknown = [name for name in wanted if name not in listed]
    if unknown:
        raise NothingListed(
            why=f"Neither the catalogue nor the brokers have a topic {unknown[0]!r}.", next_step="plant topics list"
        )


def _row(name: str, topic: Topic | None, real: Description | None) -> dict[str, object]:
    return {
        "topic": name,
        "state": "present" if real else "missing",
        "partitions": real.partitions if real else None,
        "replicas": real.replicas if real else None,
        "key": topic.key if topic else None,
        "kept": _kept(topic) if topic else None,
        "id": str(real.topic_id) if real else None,
    }


def _kept(topic: Topic) -> str:
    from streams.topics import RETENTION_FOREVER

    days = topic.retention_ms // 86_400_000
    return "permanently" if topic.retention_ms == RETENTION_FOREVER else f"{days} days"


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
