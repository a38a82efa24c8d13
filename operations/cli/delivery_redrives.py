"""`plant deliveries retry|recover|redrives`: orders to send deliveries again, and how far they are."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from operations.cli.delivery_options import DeliveryOptions, redriven_options
from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show
from operations.cli.redrive_options import Ordering, ordering_options
from operations.operator_actions import actor_option, reason_option

if TYPE_CHECKING:
    from deliveries.redrive.orders import StoredRedrive
    from deliveries.redrive.recovery import RecoveryOffer
    from runtime.settings import Settings
    from schemas.delivery_records import DeliveryState

COLUMNS: Final = ("number", "kind", "state", "deliveries", "queued", "ordered_at", "ordered_by", "reason")


@click.command()
@click.argument("delivery_ids", metavar="[ID]...", nargs=-1, type=click.UUID)
@redriven_options
@click.option(
    "--state",
    "states",
    type=click.Choice(["dead", "cancelled", "delivered"]),
    multiple=True,
    default=("dead",),
    show_default=True,
    help="Those in this state; repeat for several.",
)
@ordering_options("Its receivers work again.")
def retry(
    delivery_ids: tuple[UUID, ...], options: DeliveryOptions, states: tuple[DeliveryState, ...], ordering: Ordering
) -> None:
    """Send dead deliveries again, each with a full new schedule of retries.

    Choose them by ID or by options. Those that wait, or that another order has, are left out. The plan is shown first.

    \b
    Examples:
      plant deliveries retry --error 503 --since 2d
      plant deliveries retry --error 503 --since 2d --execute
      plant deliveries retry --state cancelled --execute \\
        --endpoint 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
    """
    from deliveries.redrive.selection import RedriveSelection
    from operations.cli.redrive_orders import plan_and_order

    if not delivery_ids and not any(options):
        raise click.UsageError("Name deliveries, or choose them with options such as --endpoint or --since.")
    selection = RedriveSelection(filter=options.filter(), states=states, delivery_ids=delivery_ids)
    asyncio.run(plan_and_order("retry", selection, ordering))


@click.command()
@click.argument("endpoint_id", metavar="ENDPOINT", type=click.UUID)
@click.option(
    "--since",
    metavar="TIME|10m|2d",
    help="What was dead or cancelled at this time or later.  [default: since it began to fail]",
)
@ordering_options("The endpoint has recovered.")
def recover(endpoint_id: UUID, since: str | None, ordering: Ordering) -> None:
    """Send again all that is dead or cancelled of ENDPOINT since it began to fail.

    Its last trouble is taken: what was dead or cancelled, back to an hour without any in which it took a delivery. What
    was published while it was paused or disabled has no delivery: see `plant deliveries replay-missing`.

    \b
    Examples:
      plant deliveries recover 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
      plant deliveries recover --since 2d --execute \\
        0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
    """
    from operations.cli.redrive_orders import plan_recovery

    asyncio.run(plan_recovery(endpoint_id, since, ordering))


@click.command(name="replay-missing")
@click.argument("endpoint_id", metavar="ENDPOINT", type=click.UUID)
@click.option("--since", required=True, metavar="TIME|10m|2d", help="Events that were published then or later.")
@ordering_options("The endpoint was not sent them.")
def replay_missing(endpoint_id: UUID, since: str, ordering: Ordering) -> None:
    """Send ENDPOINT the events that it asks for and was not sent.

    The log is compared with what is recorded: events without a delivery that was delivered, waits or is dead, such as
    those from while it was paused or disabled. It waits until what is on its way is recorded, or says that it can't
    tell.

    \b
    Example:
      plant deliveries replay-missing --since 2d \\
        0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
    """
    from operations.cli.redrive_orders import plan_replay

    asyncio.run(plan_replay(endpoint_id, since, ordering))


@click.group(name="redrives", cls=CommandGroup)
def redrives() -> None:
    """Look up orders to send deliveries again, and stop one."""


@redrives.command(name="list")
@click.option("--limit", type=click.IntRange(1, 2**31 - 1), default=50, show_default=True, help="Most orders to print.")
@output_option
def list_redrives(limit: int, output: Output) -> None:
    """List orders, newest first.

    \b
    Example:
      plant deliveries redrives list
    """
    from operations.cli.redrive_orders import open_redrives

    async def read() -> list[StoredRedrive]:
        async with open_redrives() as orders:
            return await orders.newest(limit)

    found = asyncio.run(read())
    show([_fields(each) for each in found], output, columns=COLUMNS)
    if not found:
        click.echo("There are no orders.", err=True)


@redrives.command(name="show")
@click.argument("number", type=click.IntRange(1, 2**31 - 1))
@output_option
def show_redrive(number: int, output: Output) -> None:
    """Show the order NUMBER, and what was recorded of its deliveries since.

    \b
    Example:
      plant deliveries redrives show 7
    """
    from operations.cli.redrive_orders import open_redrives

    async def read() -> dict[str, Any]:
        async with open_redrives() as orders:
            return {**_fields(await orders.find(number)), "recorded": await orders.recorded(number)}

    fields = asyncio.run(read())
    if output == "table":
        counts = ", ".join(f"{count:,} {state}" for state, count in sorted(fields["recorded"].items()))
        fields |= {"recorded": counts or "nothing yet", "selection": str(fields["selection"])}
        show([{"field": name.replace("_", " "), "value": value} for name, value in fields.items()], output)
    else:
        show([fields], output)


@redrives.command(name="stop")
@click.argument("number", type=click.IntRange(1, 2**31 - 1))
@actor_option
@reason_option("It is not wanted any more.")
def stop_redrive(number: int, actor: str, reason: str) -> None:
    """Stop the order NUMBER: what is on Kafka is sent, and nothing else of it.

    \b
    Example:
      plant deliveries redrives stop 7
    """
    from operations.cli.redrive_orders import stop_order

    asyncio.run(stop_order(number, actor, reason))


def _fields(redrive: StoredRedrive) -> dict[str, Any]:
    import msgspec

    fields = msgspec.structs.asdict(redrive)
    del fields["operation_id"], fields["request_digest"]
    return fields


async def find_offers(settings: Settings, endpoint_ids: Collection[UUID]) -> dict[UUID, RecoveryOffer]:
    """Return those of some endpoints that have recovered, and what can be sent to each again."""
    from database.connector import connect
    from deliveries.redrive.recovery import recovery_offers

    database = connect(settings, "operator")
    try:
        return await recovery_offers(database, endpoint_ids)
    finally:
        await database.close()


def tell_offers(offers: Mapping[UUID, RecoveryOffer]) -> None:
    """Say how deliveries to endpoints that have recovered are sent again."""
    for endpoint_id, offer in offers.items():
        if offer.recovered:
            have = "delivery of its last trouble is" if offer.recovered == 1 else "deliveries of its last trouble are"
            click.echo(
                f"The endpoint takes deliveries again, and {offer.recovered:,} {have} dead or cancelled:"
                f" plant deliveries recover {endpoint_id}",
                err=True,
            )
        if offer.older:
            have, them = ("delivery is", "it too") if offer.older == 1 else ("deliveries are", "them too")
            click.echo(
                f"{offer.older:,} older {have} dead, from before the endpoint's last trouble:"
                f" plant deliveries retry --endpoint {endpoint_id} takes {them}",
                err=True,
            )
