"""`plant up`: the local stack, ready for work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from operations.cli.listing import Output, output_option, show


@click.command(name="up")
@click.option("--postgres", "major", type=click.Choice(["16", "18"]), help="Major version of Postgres.  [default: 18]")
@click.option("--brokers", type=click.Choice(["1", "3"]), help="Kafka brokers, chosen for good.  [default: 1]")
@output_option
def command(major: str | None, brokers: str | None, output: Output) -> None:
    """Start Kafka and Postgres on this machine.

    Downloads what is missing (once a user), chooses free ports, waits until both answer, migrates the database and
    makes the topics. Running it again finds what runs and starts only what does not.

    Three brokers keep each event three times and go on when one of them is lost; they take about 1.5 GB.

    Addresses and passwords are written to .plant/stack.env, which every other command reads.
    """
    from operations.cli.progress import ShownProgress
    from operations.local_stack import prepare_stack, stack_here

    progress = ShownProgress()
    stack = stack_here(major=major, brokers=brokers, progress=progress)
    services = stack.up(lambda environ: prepare_stack(environ, progress))
    show(status_rows(services), output, columns=STATUS_COLUMNS)
    _warn_of_overrides(stack.environ)
    progress.say(f"Ready. Logs: {stack.home / 'logs'}. Next: plant status, plant demo, plant down.")


STATUS_COLUMNS = ("service", "state", "version", "address", "pid", "uptime_seconds")


def status_rows(services: list[Any]) -> list[dict[str, Any]]:
    """Return one row for each service, for `up` and `status`."""
    return [
        {
            "service": service.name,
            "state": service.state,
            "version": service.version,
            "address": service.address,
            "pid": service.pid,
            "uptime_seconds": service.uptime_seconds,
            "log": service.log,
        }
        for service in services
    ]


def _warn_of_overrides(environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        if os.environ.get(name, value) != value:
            click.echo(f"Note: {name} is set in the environment, which goes before this stack's address.", err=True)
