"""Orders to send deliveries again, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from database.connector import connect
from deliveries.redrive.orders import RedriveOrder, Redrives
from runtime.settings import Settings


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
