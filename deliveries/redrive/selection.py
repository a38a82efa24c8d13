"""Which recorded deliveries an order is about, as conditions on their rows; and which of these are left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from deliveries.state.delivery_rows import DeliveryFilter, delivery_conditions
from schemas.delivery_records import DeliveryState


class RedriveSelection(msgspec.Struct, frozen=True, kw_only=True):
    """What an order asks for: deliveries that pass the filter, and are in one of the states.

    A filter's own state is not looked at. `state_since` is the time of the last record of a delivery.
    """

    filter: DeliveryFilter = DeliveryFilter()
    states: tuple[DeliveryState, ...] = ("dead",)
    delivery_ids: tuple[UUID, ...] = ()
    state_since: datetime | None = None


# redrive_pending: whether an order that is not done has a delivery, whoever gave it.
SELECTED: Final = """
SELECT d.*, e.state AS endpoint_state,
    CASE WHEN e.state <> 'active' THEN 'inactive'
         WHEN d.type LIKE 'plant.%' THEN 'unlogged'
         WHEN redrive_pending(d.id, d.hop) THEN 'ordered'
    END AS left_out
FROM (SELECT * FROM {deliveries} WHERE {conditions}) AS d JOIN endpoints AS e ON e.id = d.endpoint_id
"""
"""Left out are deliveries to endpoints that take none, those that are ordered, and events that are not in the log."""


def selection_conditions(selection: RedriveSelection, endpoint_ids: Sequence[UUID]) -> tuple[str, dict[str, Any]]:
    """Return the conditions on rows of deliveries, and their values; `endpoint_ids` are all that there are."""
    asked = msgspec.structs.replace(selection.filter, state=None)
    conditions, values = delivery_conditions(asked, endpoint_ids)
    states = ", ".join(f"'{state}'" for state in selection.states if state != "waiting")
    conditions.append(f"state IN ({states})" if states else "false")
    if selection.delivery_ids:
        values["delivery_ids"] = list(selection.delivery_ids)
        conditions.append("id = ANY (CAST(:delivery_ids AS uuid[]))")
    if selection.state_since is not None:
        values["state_since"] = selection.state_since
        conditions.append("state_at >= :state_since")
    return " AND ".join(conditions), values
