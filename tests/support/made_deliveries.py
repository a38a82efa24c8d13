"""Deliveries as a deliverer holds them, for tests of its pure parts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from deliveries.deliverer.delivery import Delivery


def made_delivery(endpoint: int = 1, *, entity: int = 1, offset: int = 0, **changes: Any) -> Delivery:
    """Return the delivery of the event at an offset, about an entity, to an endpoint."""
    fields: dict[str, Any] = {
        "event_id": offset.to_bytes(16, "big"),
        "delivery_id": offset.to_bytes(8, "big") + endpoint.to_bytes(8, "big"),
        "endpoint_id": endpoint.to_bytes(16, "big"),
        "type": "genesis.agent.available",
        "source": "plant/tests",
        "occurred_at": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "entity_id": entity.to_bytes(16, "big"),
        "traceparent": None,
        "data": b"{}",
        "stream": "live",
        "source_partition": 0,
        "source_offset": offset,
        "source_rank": 0,
        "attempt": 1,
        "hop": 0,
        "due_at": None,
        "token": 1,
        "value": b"",
    }
    return Delivery(**{**fields, **changes})
