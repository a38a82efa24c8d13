"""The work of `plant deliveries retry` and its like: a plan, the operator action, the order, and how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import click
import msgspec

from database.connector import Database, connect
from deliveries.endpoint_store import open_endpoint_store
from deliveries.redrive.missing_deliveries import MissingDelivery, MissingSearch, MissingTally
from deliveries.redrive.orders import NewOrder, RedriveKind, RedriveOrder, Redrives, StoredRedrive
from deliveries.redrive.recovery import failing_since, recovery_selection
from deliveries.redrive.redrive_plan import WHY_LEFT_OUT, RedrivePlan
from deliveries.redrive.selection import RedriveSelection
from deliveries.state.delivery_rows import DeliveryRows
from operations.cli.listing import show
from operations.cli.moments import read_bound
from operations.cli.progress import counting
from operations.operator_actions import OperatorAction, account, publish_action, record, with_facts
from runtime.clock import SystemClock
from runtime.settings import Settings, load_settings
from streams.producer import EventProducer
from streams.topics import OPERATIONS_TOPIC

if TYPE_CHECKING:
    from deliveries.endpoints import Endpoint
    from operations.cli.redrive_options import Ordering

POLL_SECONDS: Final = 0.5
UNTAKEN_SECONDS: Final = 15.0
"""After this long without progress it is said that no dispatcher may be running."""
COLUMNS: Final = ("endpoint_id", "state", "type", "deliveries")


@asynccontextmanager
async def open_redrives() -> AsyncIterator[Redrives]:
    """Open the tables of redrives as plant_operator."""
    database = connect(load_settings(), "operator")
    try:
        yield Redrives(database)
    finally:
        await database.close()


async def plan_and_order(kind: RedriveKind, selection: RedriveSelection, ordering: Ordering) -> None:
    """Show what a selection would send, and order it if that is asked for."""
    settings = load_settings()
    database = connect(settings, "operator")
    try:
        if selection.filter.endpoint_id is not None:
            await DeliveryRows(database).page(selection.filter)  # raises UnknownEndpoint
        for delivery in selection.delivery_ids:
            await DeliveryRows(database).find(delivery)  # raises UnknownDelivery
        orders = Redrives(database)
        plan = await orders.plan(selection)
        ordered = None
        if ordering.execute and plan.deliveries:
            order = _order(kind, msgspec.to_builtins(selection), ordering)
            async with _open_order(settings, database, order) as new:
                await new.add_selected(selection)
            ordered = await orders.find(new.number)
        show_plan(kind, plan, ordering, ordered)
        if ordered is not None and ordering.follow:
            await follow(orders, ordered.number)
    finally:
        await database.close()


async def plan_recovery(endpoint_id: UUID, since: str | None, ordering: Ordering) -> None:
    """Show what `recover` would send, and order it if that is asked for."""
    asked_since = read_bound("--since", since, SystemClock().now())
    database = connect(load_settings(), "operator")
    try:
        began_at = asked_since or await failing_since(database, endpoint_id)
    finally:
        await database.close()
    if asked_since is None and began_at is not None:
        click.echo(f"Since {began_at:%Y-%m-%dT%H:%M:%SZ}, when it began to fail; --since takes more or less.", err=True)
    await plan_and_order("recover", recovery_selection(endpoint_id, began_at), ordering)


async def plan_replay(endpoint_id: UUID, since: str, ordering: Ordering) -> None:
    """Show which events an endpoint was not sent, and order them if that is asked for."""
    settings, now = load_settings(), SystemClock().now()
    since_at = read_bound("--since", since, now)
    assert since_at is not None
    async with open_endpoint_store(settings) as store:
        endpoint = await store.find(endpoint_id)
    database = connect(settings, "operator")
    try:
        search = MissingSearch(settings, database, endpoint)
        await search.prepare(since_at, now)
        plan, missing = await _plan_missing(endpoint, search, ordering)
        click.echo(f"{search.checked:,} events of the log were compared.", err=True)
        if search.undispatched:
            click.echo(f"{search.undispatched:,} offsets since then are not dispatched yet (plant status).", err=True)
        orders, ordered = Redrives(database), None
        if ordering.execute and plan.deliveries:
            selection = {"endpoint_id": str(endpoint_id), "since": since_at.isoformat()}
            order = _order("replay_missing", selection, ordering)
            async with _open_order(settings, database, order) as new:
                await new.add_missing(endpoint_id, missing)
            ordered = await orders.find(new.number)
        show_plan("replay_missing", plan, ordering, ordered)
        if ordered is not None and ordering.follow:
            await follow(orders, ordered.number)
    finally:
        await database.close()


async def _plan_missing(
    endpoint: Endpoint, search: MissingSearch, ordering: Ordering
) -> tuple[RedrivePlan, list[MissingDelivery]]:
    """Return the plan of what a search finds, and the deliveries of its order, which are kept only for that."""
    tally, missing = MissingTally(endpoint), list[MissingDelivery]()
    async with aclosing(search.missing()) as found:
        async for each in found:
            if tally.add(each) is None and ordering.execute:
                missing.append(each)
    return tally.plan(), missing


async def stop_order(number: int, actor: str, reason: str) -> None:
    """Stop an order. Raises UnknownRedrive."""
    async with open_redrives() as orders:
        await orders.find(number)
        action = OperatorAction(action="deliveries.stop", target=str(number), reason=reason, actor=actor)
        await record(load_settings(), action)
        stopped = await orders.stop(number)
        found = await orders.find(number)
    text = "is stopped" if stopped else f"had ended: it is {found.state}"
    click.echo(f"The redrive {number} {text}; {found.queued:,} of {found.deliveries:,} were sent.", err=True)


def _order(kind: RedriveKind, selection: dict[str, Any], ordering: Ordering) -> RedriveOrder:
    return RedriveOrder(
        operation_id=uuid4(), kind=kind, selection=selection, reason=ordering.reason,
        ordered_by=ordering.actor or account(), rate_per_second=ordering.rate_per_second,
    )  # fmt: skip


@asynccontextmanager
async def _open_order(settings: Settings, database: Database, order: RedriveOrder) -> AsyncIterator[NewOrder]:
    """Yield an order to add deliveries to; when the block ends it is recorded as an operator action, and given.

    Kafka is connected to before, since no other order is given meanwhile.
    """
    await database.require_writable()
    async with EventProducer(settings, topics=(OPERATIONS_TOPIC,)) as producer:

        async def record_order(contents: Mapping[UUID, int]) -> None:
            target = str(next(iter(contents))) if len(contents) == 1 else f"{len(contents)} endpoints"
            facts = [f"{sum(contents.values())} deliveries", f"{order.rate_per_second} a second"]
            action = OperatorAction(
                action=f"deliveries.{order.kind}", target=target, reason=with_facts(order.reason, facts),
                actor=order.ordered_by, operation_id=order.operation_id,
            )  # fmt: skip
            await publish_action(producer, action)

        async with Redrives(database).open_order(order, record=record_order) as new:
            yield new


def show_plan(kind: RedriveKind, plan: RedrivePlan, ordering: Ordering, ordered: StoredRedrive | None) -> None:
    """Print a plan: its groups to stdout, and in words what follows from them, and what of it was ordered."""
    if ordering.output == "table":
        show([msgspec.structs.asdict(each) for each in plan.groups], "table", columns=COLUMNS)
    else:
        plan_fields = {
            "deliveries": plan.deliveries,
            "rate_per_second": ordering.rate_per_second,
            "seconds": round(plan.seconds(ordering.rate_per_second), 1),
            "groups": [msgspec.structs.asdict(each) for each in plan.groups],
            "left_out": dict(plan.left_out),
            "examples": [str(each) for each in plan.examples],
            "redrive": None if ordered is None else ordered.number,
            "ordered": None if ordered is None else ordered.deliveries,
        }
        show([plan_fields], ordering.output)
    for left_out, count in sorted(plan.left_out.items()):
        click.echo(f"{count:,} are left out: {WHY_LEFT_OUT[left_out]}.", err=True)
    if not plan.deliveries:
        click.echo("Nothing is to be sent.", err=True)
        return
    for each in plan.examples:
        looked_up = "list --event" if kind == "replay_missing" else "show"
        click.echo(f"For example: plant deliveries {looked_up} {each}", err=True)
    seconds = timedelta(seconds=round(plan.seconds(ordering.rate_per_second)))
    click.echo(f"{plan.deliveries:,} deliveries, {ordering.rate_per_second:,} a second: {seconds} at least.", err=True)
    if ordered is None:
        click.echo("Nothing was ordered: add --execute.", err=True)
    else:
        number, count = ordered.number, ordered.deliveries
        click.echo(f"Ordered {count:,} as redrive {number}: plant deliveries redrives show {number}", err=True)


async def follow(orders: Redrives, number: int) -> None:
    """Show how far an order is until its end; it goes on without that."""
    try:
        found, shown = await orders.find(number), 0
        with counting("redriven", found.deliveries) as advance:
            moved_at, told = time.monotonic(), False
            while True:
                sent = found.queued + found.unfound
                if sent > shown:
                    advance(sent - shown)
                    shown, moved_at = sent, time.monotonic()
                if found.state != "running":
                    break
                if not told and time.monotonic() - moved_at > UNTAKEN_SECONDS:
                    click.echo("It waits for a dispatcher, or for deliverers that are behind.", err=True)
                    told = True
                await asyncio.sleep(POLL_SECONDS)
                found = await orders.find(number)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(f"The order goes on: plant deliveries redrives show {number}", err=True)
        raise
    if found.unfound:
        click.echo(f"Of {found.unfound:,} the log has no event: they were not sent.", err=True)
    click.echo(f"{found.queued:,} were handed to deliverers: plant deliveries redrives show {number}", err=True)
