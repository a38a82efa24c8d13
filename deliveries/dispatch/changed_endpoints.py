"""What changed about endpoints, read from its rows, and who is told of it: `endpoint_events`. Pure but for the queries.

A row is added by the transaction of the change. A dispatcher numbers it once, and writes down with the number who gets
it; after that nothing of it changes, so whoever publishes it publishes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from deliveries.dispatch.queued_deliveries import DeliveryRecord, spliced
from deliveries.endpoints import EndpointId
from deliveries.errors import EndpointFilterRefused
from deliveries.matching import Subscription, make_subscription
from deliveries.signed_request import outgoing_event
from schemas import codec
from schemas.delivery_records import DeliveryQueued
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES, EndpointEvent

SOURCE: Final = "plant/endpoints"
ONLY_PARTITION: Final = 0
"""All of them are in one order."""

UNSENT: Final = """
SELECT id, event_id, endpoint_id, type, occurred_at, reason, percent, failing_since, position, subscribers
FROM endpoint_events WHERE sent_at IS NULL ORDER BY position NULLS LAST, id LIMIT $1
"""
ASKING: Final = """
SELECT id, event_types, filter::text AS filter, start_offsets, created_at FROM endpoints
WHERE state = 'active' AND EXISTS (SELECT FROM unnest(event_types) AS t WHERE t LIKE 'plant.%')
"""
NUMBER: Final = """
UPDATE endpoint_events
SET position = (SELECT coalesce(max(position), -1) + 1 FROM endpoint_events), subscribers = $2
WHERE id = $1 AND position IS NULL RETURNING position
"""
MARK_SENT: Final = "UPDATE endpoint_events SET sent_at = clock_timestamp() WHERE id = ANY ($1::bigint[])"
# The last number stays: the next one is above it.
PURGE: Final = """
DELETE FROM endpoint_events
WHERE sent_at < now() - make_interval(days => $1) AND position < (SELECT max(position) FROM endpoint_events)
"""


class EndpointEventRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that has not been published."""

    id: int
    event: EndpointEvent
    position: int | None
    subscribers: tuple[EndpointId, ...]
    """In the order of their ids; empty until it has a position."""


class AskingEndpoint(msgspec.Struct, frozen=True):
    """An endpoint that asks for events of endpoints, and since when it is there."""

    subscription: Subscription
    created_at: datetime


def row_of(found: Mapping[str, Any]) -> EndpointEventRow:
    """Return a row of `UNSENT`."""
    kind = ENDPOINT_EVENT_TYPES[found["type"]]
    fields = {name: found[name] for name in ("reason", "percent", "failing_since") if name in kind.__struct_fields__}
    ids = {"event_id": _plain(found["event_id"]), "endpoint_id": _plain(found["endpoint_id"])}
    return EndpointEventRow(
        id=found["id"],
        event=kind(**ids, occurred_at=found["occurred_at"], **fields),
        position=found["position"],
        subscribers=tuple(EndpointId(_plain(each)) for each in found["subscribers"] or ()),
    )


def asking_endpoints(rows: Iterable[Mapping[str, Any]]) -> Iterator[AskingEndpoint]:
    """Yield the endpoints of `ASKING`; one whose choice can't be read gets nothing, as of the log's events."""
    for row in rows:
        try:
            subscription = make_subscription(
                EndpointId(_plain(row["id"])),
                row["event_types"],
                msgspec.json.decode(row["filter"]),
                row["start_offsets"],
            )
        except (EndpointFilterRefused, msgspec.DecodeError):
            continue
        yield AskingEndpoint(subscription, row["created_at"])


def subscribers_of(event: EndpointEvent, asking: Iterable[AskingEndpoint]) -> list[EndpointId]:
    """Return who gets an event, in the order of their ids: never the endpoint itself, nor one that came later."""
    data = msgspec.json.decode(outgoing_event(event, source=SOURCE).data)
    return sorted(
        each.subscription.endpoint_id
        for each in asking
        if each.subscription.endpoint_id != event.endpoint_id
        and each.created_at <= event.occurred_at
        and each.subscription.matches_event(event.event_type, data)
    )


def records_of_rows(rows: Sequence[EndpointEventRow]) -> Iterator[DeliveryRecord]:
    """Yield the deliveries of rows that have a position, in the order of these."""
    for row in rows:
        assert row.position is not None
        event = row.event
        queued = DeliveryQueued(
            event_id=event.event_id, delivery_id=UUID(int=0), endpoint_id=UUID(int=0), type=event.event_type,
            source=SOURCE, occurred_at=event.occurred_at, entity_id=event.endpoint_id, traceparent=None,
            data=outgoing_event(event, source=SOURCE).data, stream="endpoints", source_partition=ONLY_PARTITION,
            source_offset=row.position, source_rank=0, attempt=1, hop=0, due_at=None, token=0,
        )  # fmt: skip
        yield from spliced(codec.encode_checked(queued), event.event_id, row.subscribers)


def _plain(value: Any) -> UUID:
    """Return an id as the standard library's: asyncpg has a class of its own."""
    return UUID(bytes=value.bytes)
