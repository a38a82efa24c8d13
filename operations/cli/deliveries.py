"""`plant deliveries`: what became of deliveries, and of each attempt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from operations.cli.delivery_options import CursorType, DeliveryOptions, delivery_options
from operations.cli.delivery_redrives import recover, redrives, replay_missing, retry, tell_offers
from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, RowPrinter, output_option, show
from runtime.process import output_is_read

if TYPE_CHECKING:
    from deliveries.redrive.recovery import RecoveryOffer
    from deliveries.state.delivery_rows import (
        DeliveryCursor,
        DeliveryFilter,
        RecordedAttempt,
        RecordedDelivery,
    )

WIDTHS: Final = {"occurred_at": 20, "id": 36, "state": 9, "attempts": 8, "last": 16, "type": 24, "endpoint_id": 36}
RECOVERED_MAX: Final = 5
"""Endpoints of a list of which it is looked up whether they have recovered."""


@click.group(name="deliveries", cls=CommandGroup)
def command() -> None:
    """Look up what became of deliveries, and send them again."""


for each in (retry, recover, replay_missing, redrives):
    command.add_command(each)


@command.command(name="list")
@delivery_options
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most deliveries to print.")
@click.option("--after", type=CursorType(), metavar="CURSOR", help="Go on behind the last delivery of another list.")
@output_option
def list_deliveries(options: DeliveryOptions, limit: int, after: DeliveryCursor | None, output: Output) -> None:
    """List deliveries, those of the newest events first.

    What deliverers have recorded is read as plant_operator. A list that has more says where to go on.

    \b
    Examples:
      plant deliveries list --state dead --since 2d
      plant deliveries list --reason timeout \\
        --endpoint 0b6d7f0e-6f39-4c0e-9d53-1f6f3a1f0a77
      plant deliveries list --output jsonl \\
        --event 456a21bf-ff53-538c-b488-17ce1a1064dd
    """
    printer = RowPrinter(output, WIDTHS)
    count, cursor, offers = asyncio.run(_list(options.filter(), limit, after, printer, output))
    printer.finish()
    tell_offers(offers)
    if cursor is not None:
        click.echo(f"There are more: add --after {cursor}", err=True)
    elif not count:
        click.echo("No such delivery is recorded.", err=True)


async def _list(
    asked: DeliveryFilter, limit: int, after: DeliveryCursor | None, printer: RowPrinter, output: Output
) -> tuple[int, DeliveryCursor | None, dict[UUID, RecoveryOffer]]:
    """Print deliveries; return how many, where to go on if there are more, and what can be sent again."""
    from database.connector import connect
    from deliveries.redrive.recovery import recovery_offers
    from deliveries.state.delivery_rows import PAGE_ROWS, DeliveryRows
    from runtime.settings import load_settings

    database = connect(load_settings(), "operator")
    try:
        rows, count, cursor = DeliveryRows(database), 0, after
        with_dead: set[UUID] = set()
        while page := await rows.page(asked, cursor):
            for delivery in page:
                if count == limit:
                    return count, cursor, await recovery_offers(database, with_dead)
                if delivery.state == "dead" and len(with_dead) < RECOVERED_MAX:
                    with_dead.add(delivery.endpoint_id)
                printer.row(_row(delivery) if output == "table" else fields_of_delivery(delivery))
                count, cursor = count + 1, delivery.cursor
            if len(page) < PAGE_ROWS or not output_is_read():
                break
        return count, None, await recovery_offers(database, with_dead)
    finally:
        await database.close()


def _row(delivery: RecordedDelivery) -> dict[str, Any]:
    last = delivery.error_class or delivery.status_code
    return {**{name: getattr(delivery, name) for name in WIDTHS if name != "last"}, "last": last}


def fields_of_delivery(delivery: RecordedDelivery) -> dict[str, Any]:
    """Return a delivery as JSON has it."""
    import msgspec

    return {
        name: str(value) if isinstance(value, UUID) else value
        for name, value in msgspec.structs.asdict(delivery).items()
    }


@command.command(name="show")
@click.argument("delivery_id", metavar="ID", type=click.UUID)
@output_option
def show_delivery(delivery_id: UUID, output: Output) -> None:
    """Show one delivery, and each of its attempts with what was sent and what came back.

    ID is the delivery's, which subscribers get as `webhook-id`. Of a body there are the first 4 KiB.

    \b
    Examples:
      plant deliveries show d68a97c2-dec8-57ea-a300-38e36496dc8c
      plant deliveries show --output json d68a97c2-dec8-57ea-a300-38e36496dc8c
    """
    from operations.cli.delivery_timeline import attempt_line, timeline

    delivery, attempts = asyncio.run(_read(delivery_id))
    fields = fields_of_delivery(delivery)
    if output != "table":
        show([{**fields, "timeline": [attempt_line(each) for each in attempts]}], output)
        return
    show([{"field": name.replace("_", " "), "value": value} for name, value in fields.items()], output)
    for line in timeline(attempts):
        click.echo(line)


async def _read(delivery_id: UUID) -> tuple[RecordedDelivery, list[RecordedAttempt]]:
    from database.connector import connect
    from deliveries.state.delivery_rows import DeliveryRows
    from runtime.settings import load_settings

    database = connect(load_settings(), "operator")
    try:
        rows = DeliveryRows(database)
        delivery = await rows.find(delivery_id)
        return delivery, await rows.attempts(delivery)
    finally:
        await database.close()
