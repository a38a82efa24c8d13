"""Queries on the read model `activity`, in which the counts of the partitions are added up."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT
from projections.listing import Listing, ListingColumn, ListingFilter

_HOURS: Final = text("""
    SELECT hour, event_type, CAST(sum(events) AS bigint) AS events FROM read_models.activity
    WHERE hour >= CAST(:start AS timestamptz) AND hour < CAST(:stop AS timestamptz)
    GROUP BY hour, event_type ORDER BY hour, event_type
""")

ACTIVITY: Final = Listing(
    model="activity",
    source="""(
        SELECT hour, event_type, CAST(sum(events) AS bigint) AS events FROM read_models.activity
        WHERE hour >= :start::timestamptz AND hour < :stop::timestamptz GROUP BY hour, event_type
    ) AS activity""",
    arguments=("start", "stop"),
    key=("hour", "event_type"),
    columns=(
        ListingColumn("hour", "time", "When the hour begins.", nullable=False),
        ListingColumn("event_type", "text", "The events' type.", nullable=False),
        ListingColumn("events", "integer", "How many there were.", nullable=False),
    ),
    filters=(ListingFilter("event-type", "text", "event_type = {}", "Events of this type."),),
)


async def activity(database: Database, start: datetime, stop: datetime) -> list[Any]:
    """Return how many events of each type came in each hour that begins at or after `start` and before `stop`.

    An event's hour is that of its `occurred_at`, the producer's clock. Hours without events are left out.
    """
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_HOURS, {"start": start, "stop": stop})).all())
