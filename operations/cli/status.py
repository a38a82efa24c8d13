"""`plant status`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from operations.cli.listing import Output, output_option, show
from runtime.redaction import redact

if TYPE_CHECKING:
    from operations.partition_status import ClusterStatus
    from runtime.errors import PlantError
    from runtime.settings import Settings

PARTITION_COLUMNS: Final = ("topic", "partition", "state", "checkpoint", "log_end", "lag", "owner")
MODEL_COLUMNS: Final = ("read_model", "topic", "partition", "state", "checkpoint", "log_end", "lag")

DELIVERY_COLUMNS: Final = ("part", "topic", "partition", "state", "lag", "waiting", "due", "blocking", "owner")

Row = Mapping[str, Any]


@click.command(name="status")
@output_option
@click.pass_context
def command(context: click.Context, output: Output) -> None:
    """Show what runs, and where; exit 3 unless all of it does.

    First the services of the local stack, where there is one. A service is `running` when it answers, `unresponsive`
    when its process is there but does not, else `stopped`.

    Then every partition that workers read, of the Kafka and the Postgres that settings name: the checkpoint, the log's
    end, the lag, and the owner. A partition is `owned` while its owner is connected to Postgres and `unowned` while
    nobody is; exit 3 where one is `stopped`, with the reason, or where Kafka does not hold the log that was read:
    `topic gone`, `topic remade`, `out of log`.

    Then each read model that does not follow its partition: it is `behind`, or `stopped`, with the reason (exit 3).

    Then the partitions of dispatchers, deliverers and recorders, if there are any: their lag, the deliveries that wait
    in Postgres, those of them that are due, and the dead letters that later events wait for; exit 3 where one is
    `stopped`.

    Exit 4 where Kafka or Postgres does not answer; what the other one knows is shown all the same.
    """
    from runtime.settings import load_settings

    settings = load_settings()
    services = _services(settings)
    cluster = _cluster(settings)
    if output == "table":
        _show_tables(services, cluster)
    else:
        show([*services, *_rows(cluster)], output)
    for problem in cluster.problems if cluster else ():
        _show_problem(problem)
    if code := _exit_code(services, cluster):
        context.exit(code)


def _services(settings: Settings) -> list[dict[str, Any]]:
    """Return the local stack's services; none where settings name other ones and no stack was ever started here."""
    if _names_services(settings) and not (Path(settings.home) / "stack.json").exists():
        return []
    from operations.cli.up import status_rows
    from operations.local_stack import stack_here

    return [{"kind": "service", **row} for row in status_rows(stack_here().status())]


def _cluster(settings: Settings) -> ClusterStatus | None:
    if not _names_services(settings):
        return None
    from operations.cli.refusals import explain
    from operations.partition_status import read_cluster

    return asyncio.run(read_cluster(settings, explain))


def _names_services(settings: Settings) -> bool:
    return bool(settings.kafka_bootstrap_servers or settings.database_operator_url or settings.database_url)


def _rows(cluster: ClusterStatus | None) -> list[dict[str, Any]]:
    """Return partitions, read models and problems as rows that say their kind."""
    import msgspec

    if cluster is None:
        return []
    models = [msgspec.structs.asdict(model) for model in cluster.models]
    return [
        *({"kind": "partition", **msgspec.structs.asdict(partition)} for partition in cluster.partitions),
        *({"kind": "read_model", "read_model": model.pop("model"), **model} for model in models),
        *({"kind": "delivery", **msgspec.structs.asdict(each)} for each in cluster.deliveries),
        *(
            {"kind": "problem", "what": redact(each.what), "why": redact(each.why), "next_step": redact(each.next_step)}
            for each in cluster.problems
        ),
    ]


def _show_tables(services: Sequence[Row], cluster: ClusterStatus | None) -> None:
    from operations.cli.up import STATUS_COLUMNS

    rows = _rows(cluster)
    partitions = [row for row in rows if row["kind"] == "partition"]
    models = [row for row in rows if row["kind"] == "read_model"]
    deliveries = [row for row in rows if row["kind"] == "delivery"]
    tables = (
        (services, STATUS_COLUMNS), (partitions, PARTITION_COLUMNS), (models, MODEL_COLUMNS),
        (deliveries, DELIVERY_COLUMNS),
    )  # fmt: skip
    for number, (table, columns) in enumerate((each, columns) for each, columns in tables if each):
        if number:
            click.echo()
        show(table, "table", columns=columns)
    for row in [*partitions, *models, *deliveries]:
        if row["stop_reason"]:
            of = {"read_model": "read_model", "delivery": "part"}.get(row["kind"])
            name = "" if of is None else f"{row[of]} on "
            click.echo(f"\n{name}{row['topic']}/{row['partition']} is stopped: {redact(row['stop_reason'])}")


def _show_problem(problem: PlantError) -> None:
    click.echo(f"{click.style('error', fg='red', bold=True)}: {redact(problem.what)}", err=True)
    if problem.why:
        click.echo(f"  why: {redact(problem.why)}", err=True)
    if problem.next_step:
        click.echo(f" next: {redact(problem.next_step)}", err=True)


def _exit_code(services: Sequence[Row], cluster: ClusterStatus | None) -> int:
    """Return 3 where something is known to be wrong, else the code of the first thing that could not be looked at."""
    if any(service["state"] != "running" for service in services):
        return 3
    if cluster is None:
        return 0
    return 3 if cluster.needs_operator else next((problem.exit_code for problem in cluster.problems), 0)
