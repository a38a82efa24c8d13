"""Orders to send deliveries again, for tests, and rows of deliveries as the recorder writes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

from database.connector import connect
from deliveries.redrive.orders import RedriveOrder, Redrives
from runtime.settings import Settings

INSERT_DELIVERY: Final = """
INSERT INTO webhook_deliveries (occurred_at, id, endpoint_id, event_id, type, entity_id, source_partition,
    source_offset, source_rank, stream, state, state_at, attempts, hop, token, why, status_code, error_class)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 6, $13, 1, '', $14, $15)
"""


def redrive_order(**changes: Any) -> RedriveOrder:
    """Return an order of a test's."""
    fields = {
        "operation_id": uuid4(), "kind": "retry", "selection": {"by": "a test"}, "reason": "A test.",
        "ordered_by": "tests", "rate_per_second": 10_000,
    }  # fmt: skip
    return RedriveOrder(**{**fields, **changes})


@asynccontextmanager
async def open_redrives(settings: Settings) -> AsyncIterator[Redrives]:
    """Open the tables of redrives as plant_operator."""
    database = connect(settings, "operator")
    try:
        yield Redrives(database)
    finally:
        await database.close()
