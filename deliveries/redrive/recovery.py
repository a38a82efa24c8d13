"""When an endpoint began to fail, and what can be sent again to endpoints that take deliveries again."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from database.connector import Database
from deliveries.redrive.orders import LARGE_TIMEOUT_SECONDS
from deliveries.redrive.selection import SELECTED, RedriveSelection, selection_conditions
from deliveries.state.delivery_rows import DeliveryFilter

QUIET_HOURS: Final = 1
"""A success ends an endpoint's trouble where nothing of it is dead or cancelled for this long."""

_FAILING_SINCE: Final = f"""
    SELECT min(state_at) AS since FROM (
        SELECT state_at, sum(over) OVER (ORDER BY state_at DESC) AS troubles_later FROM (
            SELECT state_at, CASE WHEN later - state_at > interval '{QUIET_HOURS} hours' AND EXISTS (
                SELECT FROM {{deliveries}} AS s WHERE s.endpoint_id = :endpoint_id AND s.state = 'delivered'
                  AND s.state_at > d.state_at AND s.state_at < d.later
            ) THEN 1 ELSE 0 END AS over
            FROM (
                SELECT state_at, lead(state_at) OVER (ORDER BY state_at) AS later FROM {{deliveries}}
                WHERE endpoint_id = :endpoint_id AND state IN ('dead', 'cancelled')
            ) AS d
        ) AS ends
    ) AS troubles WHERE troubles_later = 0
"""  # noqa: S608 (a number, and a table of ours)
_TAKES_AGAIN: Final = text("""
    SELECT EXISTS (
        SELECT FROM webhook_deliveries WHERE endpoint_id = :endpoint_id AND state = 'delivered' AND occurred_at > (
            SELECT coalesce(min(occurred_at) FILTER (WHERE state = 'dead'), min(occurred_at)) FROM webhook_deliveries
            WHERE endpoint_id = :endpoint_id AND state IN ('dead', 'cancelled') AND state_at >= :since
        )
    )
""")
_OFFERED: Final = f"""
    SELECT count(*) FILTER (WHERE state_at >= :since) AS recovered,
           count(*) FILTER (WHERE state_at < :since AND state = 'dead') AS older,
           count(*) FILTER (WHERE state = 'dead') AS dead
    FROM ({SELECTED}) AS d WHERE left_out IS NULL
"""  # noqa: S608 (conditions are of ours)
_MAY_BE_LARGE: Final = text(f"SET LOCAL statement_timeout = '{LARGE_TIMEOUT_SECONDS}s'")


class RecoveryOffer(NamedTuple):
    """What can be sent again to an endpoint that takes deliveries again."""

    recovered: int
    """Dead or cancelled deliveries of its last trouble: what an order to recover it has."""
    older: int
    """Dead letters from before, which an order to retry has."""


def recovery_selection(endpoint_id: UUID, began_at: datetime | None) -> RedriveSelection:
    """Return what an order to recover an endpoint is about."""
    return RedriveSelection(
        filter=DeliveryFilter(endpoint_id=endpoint_id), states=("dead", "cancelled"), state_since=began_at
    )


async def failing_since(database: Database, endpoint_id: UUID, tenant: str | None = None) -> datetime | None:
    """Return when the first delivery of an endpoint's last trouble was dead or cancelled; None where none is.

    With a tenant as plant_endpoints, without one as plant_operator.
    """
    async with database.transaction(tenant, read_only=True) as connection:
        table = "webhook_deliveries" if tenant is None else "tenant_deliveries"
        return await _failing_since(connection, endpoint_id, table)


async def _failing_since(connection: AsyncConnection, endpoint_id: UUID, table: str) -> datetime | None:
    statement = text(_FAILING_SINCE.format(deliveries=table))
    since: datetime | None = (await connection.execute(statement, {"endpoint_id": endpoint_id})).scalar_one()
    return since


async def recovery_offers(database: Database, endpoint_ids: Collection[UUID]) -> dict[UUID, RecoveryOffer]:
    """Return the endpoints of these with dead letters that have taken a later event than one of their last trouble."""
    if not endpoint_ids:
        return {}
    async with database.transaction(read_only=True) as connection:
        await connection.execute(_MAY_BE_LARGE)
        offers = {each: await _offer_of(connection, each) for each in sorted(endpoint_ids)}
    return {endpoint_id: offer for endpoint_id, offer in offers.items() if offer is not None}


async def _offer_of(connection: AsyncConnection, endpoint_id: UUID) -> RecoveryOffer | None:
    """Return an offer; None where the endpoint is not known to take deliveries again, or no letter is to be sent."""
    since = await _failing_since(connection, endpoint_id, "webhook_deliveries")
    asked = {"endpoint_id": endpoint_id, "since": since}
    if since is None or not (await connection.execute(_TAKES_AGAIN, asked)).scalar_one():
        return None
    conditions, values = selection_conditions(recovery_selection(endpoint_id, None), ())
    statement = text(_OFFERED.format(deliveries="webhook_deliveries", conditions=conditions))
    found = (await connection.execute(statement, {**values, "since": since})).one()
    return RecoveryOffer(found.recovered, found.older) if found.dead else None
