"""Deliveries and their attempts for operators: page by page, the newest event first, and one delivery with all of them.

A page is read by an index for what it asks: an endpoint, a state that is not `delivered`, or the time of the event. The
deliveries of an event are looked up by their ids, which follow from the event's and the endpoint's; event ids have no
index. What else is asked is compared row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import RowMapping, text

from database.connector import Database
from deliveries.delivery_id import delivery_id
from deliveries.errors import UnknownDelivery, UnknownEndpoint
from runtime.clock import SystemClock
from schemas.delivery_records import DeliveryState

PAGE_ROWS: Final = 500
"""Rows that are read at a time."""


SPANS: Final = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=7), timedelta(days=40))
"""Of time, in which a full page of a tenant's deliveries is looked for."""


class RecordedDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as the recorder has it (docs/reference/database.md)."""

    id: UUID
    state: DeliveryState
    state_at: datetime
    why: str
    endpoint_id: UUID
    event_id: UUID
    type: str
    entity_id: UUID
    occurred_at: datetime
    source_partition: int
    source_offset: int
    source_rank: int
    stream: str
    attempts: int
    status_code: int | None
    error_class: str | None
    first_attempted_at: datetime | None
    last_attempted_at: datetime | None
    next_attempt_at: datetime | None
    redriven: int

    @property
    def cursor(self) -> DeliveryCursor:
        """Where a list goes on behind this delivery."""
        return DeliveryCursor(self.occurred_at, self.id)


class RecordedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt as the recorder has it; `postponed` and `cancelled` are none that was made."""

    attempted_at: datetime
    attempt: int
    hop: int
    outcome: str
    state: DeliveryState
    stream: str
    duration_us: int
    status_code: int | None
    error_class: str | None
    why: str
    next_attempt_at: datetime | None
    request: bytes
    answer: bytes
    token: int


class DeliveryCursor(msgspec.Struct, frozen=True):
    """The last delivery of a page: the next page begins behind it."""

    occurred_at: datetime
    id: UUID

    def __str__(self) -> str:
        return f"{self.occurred_at.isoformat().replace('+00:00', 'Z')}/{self.id}"


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What deliveries are asked for; None asks for all. Times are of the events: `since` is in, `before` is not."""

    endpoint_id: UUID | None = None
    event_id: UUID | None = None
    type: str | None = None
    state: DeliveryState | None = None
    since: datetime | None = None
    before: datetime | None = None
    error_class: str | None = None
    status_code: int | None = None


_DELIVERY_COLUMNS: Final = ", ".join(RecordedDelivery.__struct_fields__)
_ATTEMPT_COLUMNS: Final = ", ".join(RecordedAttempt.__struct_fields__)
_CONDITIONS: Final[Mapping[str, str]] = {
    "endpoint_id": "endpoint_id = :endpoint_id",
    "type": "type = :type",
    "since": "occurred_at >= :since",
    "before": "occurred_at < :before",
    "error_class": "error_class = :error_class",
    "status_code": "status_code = :status_code",
}
_STATES: Final[Mapping[DeliveryState, str]] = {
    "delivered": "state = 'delivered'",
    "waiting": "state = 'waiting'",
    "dead": "state = 'dead'",
    "cancelled": "state = 'cancelled'",
}
"""Literals: the partial index is used for a constant alone."""

_PAGE: Final = f"""
SELECT {_DELIVERY_COLUMNS} FROM {{deliveries}} WHERE {{conditions}}
ORDER BY occurred_at DESC, id DESC LIMIT {{limit}}
"""  # noqa: S608 (columns and numbers; conditions are of ours)
_FIND: Final = f"SELECT {_DELIVERY_COLUMNS} FROM {{deliveries}} WHERE id = :id ORDER BY state_at DESC LIMIT 1"  # noqa: S608 (columns)
_ATTEMPTS: Final = f"""
SELECT {_ATTEMPT_COLUMNS} FROM {{attempts}} WHERE occurred_at = :occurred_at AND delivery_id = :id{{behind}}
ORDER BY attempted_at, hop, token LIMIT :limit
"""  # noqa: S608 (columns)
_BEHIND: Final = " AND (attempted_at, hop, token) > (:after_time, :after_hop, :after_token)"
_ENDPOINT_IDS: Final = text("SELECT id FROM endpoints ORDER BY id")


class DeliveryRows:
    """Reads deliveries as plant_operator, or those of a tenant as plant_endpoints."""

    def __init__(self, database: Database, tenant: str | None = None) -> None:
        self._database = database
        self._tenant = tenant
        self._deliveries, self._attempts = ("webhook_deliveries", "webhook_attempts")
        if tenant is not None:
            self._deliveries, self._attempts = ("tenant_deliveries", "tenant_attempts")

    async def page(
        self, asked: DeliveryFilter, after: DeliveryCursor | None = None, limit: int = PAGE_ROWS
    ) -> list[RecordedDelivery]:
        """Return the next deliveries behind a cursor, newest event first.

        Raises UnknownEndpoint where the endpoint that is asked for has never been.
        """
        async with self._database.transaction(self._tenant, read_only=True) as connection:
            endpoint_ids: Sequence[UUID] = []
            if asked.endpoint_id is not None or asked.event_id is not None:
                endpoint_ids = [row.id for row in await connection.execute(_ENDPOINT_IDS)]
            if asked.endpoint_id is not None and asked.endpoint_id not in endpoint_ids:
                raise UnknownEndpoint(
                    f"There is no endpoint {asked.endpoint_id}.", next_step="plant endpoints list --all"
                )
            rows: Sequence[RowMapping] = []
            for narrowed in [asked] if self._tenant is None else narrowings(asked, after, SystemClock().now()):
                statement, values = page_statement(narrowed, endpoint_ids, after, self._deliveries, limit)
                rows = (await connection.execute(text(statement), values)).mappings().all()
                if len(rows) == limit:
                    break
            return [RecordedDelivery(**row) for row in rows]

    async def find(self, delivery: UUID) -> RecordedDelivery:
        """Return one delivery. Raises UnknownDelivery."""
        async with self._database.transaction(self._tenant, read_only=True) as connection:
            statement = text(_FIND.format(deliveries=self._deliveries))
            row = (await connection.execute(statement, {"id": delivery})).mappings().one_or_none()
        if row is None:
            raise UnknownDelivery(delivery)
        return RecordedDelivery(**row)

    async def attempts(
        self, delivery: RecordedDelivery, after: tuple[datetime, int, int] | None = None, limit: int | None = None
    ) -> list[RecordedAttempt]:
        """Return what was recorded of a delivery's attempts, in the order of their times, all or some behind one.

        `after` is the time, the hop and the token of an attempt.
        """
        async with self._database.transaction(self._tenant, read_only=True) as connection:
            values: dict[str, Any] = {"id": delivery.id, "occurred_at": delivery.occurred_at, "limit": limit}
            if after is not None:
                values |= dict(zip(("after_time", "after_hop", "after_token"), after, strict=True))
            statement = text(_ATTEMPTS.format(attempts=self._attempts, behind="" if after is None else _BEHIND))
            return [RecordedAttempt(**row) for row in (await connection.execute(statement, values)).mappings()]


def narrowings(asked: DeliveryFilter, after: DeliveryCursor | None, now: datetime) -> list[DeliveryFilter]:
    """Return what to ask of a view with a barrier, one after the other, until a page is full; the last is all.

    Postgres sorts all rows of such a view before it takes the newest, so there should be few: those of the last minute,
    then of an hour, a day, and so on.

    >>> asked = DeliveryFilter(since=datetime(2026, 3, 1, tzinfo=UTC))
    >>> [f"{each.since:%d %H:%M}" for each in narrowings(asked, None, datetime(2026, 3, 2, 12, tzinfo=UTC))]
    ['02 11:59', '02 11:00', '01 12:00', '01 00:00']
    """
    if asked.event_id is not None:
        return [asked]
    ends = (now, asked.before, None if after is None else after.occurred_at)
    newest, earliest = min(each for each in ends if each is not None), datetime.min.replace(tzinfo=UTC)
    floor = asked.since or earliest
    begins = [newest - span for span in SPANS if newest - earliest > span]
    return [*(msgspec.structs.replace(asked, since=begin) for begin in begins if begin > floor), asked]


def page_statement(
    asked: DeliveryFilter,
    endpoint_ids: Sequence[UUID],
    after: DeliveryCursor | None,
    deliveries: str = "webhook_deliveries",
    limit: int = PAGE_ROWS,
) -> tuple[str, dict[str, Any]]:
    """Return the statement of a page and its values; `endpoint_ids` are all that there are."""
    conditions, values = delivery_conditions(asked, endpoint_ids)
    if after is not None:
        values |= {"after_time": after.occurred_at, "after_id": after.id}
        conditions.append("occurred_at <= :after_time AND (occurred_at, id) < (:after_time, :after_id)")
    chosen = " AND ".join(conditions) or "true"
    return _PAGE.format(deliveries=deliveries, conditions=chosen, limit=int(limit)), values


def delivery_conditions(asked: DeliveryFilter, endpoint_ids: Sequence[UUID]) -> tuple[list[str], dict[str, Any]]:
    """Return the conditions on rows of deliveries, and their values; `endpoint_ids` are all that there are."""
    values = {name: getattr(asked, name) for name in _CONDITIONS if getattr(asked, name) is not None}
    conditions = [_CONDITIONS[name] for name in values]
    if asked.state is not None:
        conditions.append(_STATES[asked.state])
    if asked.event_id is not None:
        asked_ids = endpoint_ids if asked.endpoint_id is None else [asked.endpoint_id]
        values["ids"] = [UUID(bytes=delivery_id(asked.event_id.bytes, each.bytes)) for each in asked_ids]
        conditions.append("id = ANY (CAST(:ids AS uuid[]))")
    return conditions, values
