"""When an endpoint began to fail, and which endpoints take deliveries again while they have dead letters."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from database.connector import Database

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
_RECOVERED: Final = text("""
    SELECT d.endpoint_id, count(*) AS dead FROM webhook_deliveries AS d JOIN endpoints AS e ON e.id = d.endpoint_id
    WHERE d.endpoint_id = ANY (CAST(:ids AS uuid[])) AND d.state = 'dead' AND e.state = 'active' AND EXISTS (
        SELECT FROM webhook_deliveries AS s
        WHERE s.endpoint_id = d.endpoint_id AND s.state = 'delivered' AND s.occurred_at > d.occurred_at
    ) GROUP BY 1 ORDER BY 1
""")


async def failing_since(database: Database, endpoint_id: UUID, tenant: str | None = None) -> datetime | None:
    """Return when the first delivery of an endpoint's last trouble was dead or cancelled; None where none is.

    With a tenant as plant_endpoints, without one as plant_operator.
    """
    table = "webhook_deliveries" if tenant is None else "tenant_deliveries"
    statement = text(_FAILING_SINCE.format(deliveries=table))
    async with database.transaction(tenant, read_only=True) as connection:
        since: datetime | None = (await connection.execute(statement, {"endpoint_id": endpoint_id})).scalar_one()
    return since


async def recovered_endpoints(database: Database, endpoint_ids: Collection[UUID]) -> dict[UUID, int]:
    """Return the endpoints of these that have taken a later event than that of a dead letter, and how many such."""
    if not endpoint_ids:
        return {}
    async with database.transaction(read_only=True) as connection:
        rows = await connection.execute(_RECOVERED, {"ids": sorted(endpoint_ids)})
        return {row.endpoint_id: row.dead for row in rows}
