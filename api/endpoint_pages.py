"""Endpoints, deliveries and attempts of a tenant, in pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast, get_args
from uuid import UUID

from api.cursors import decode_cursor, encode_cursor
from api.endpoint_answers import attempt_document, delivery_document, endpoint_document
from api.parameters import Parameters, read_count, read_query, read_value, refused, single
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import EndpointState
from deliveries.outcomes import ErrorClass
from deliveries.state.delivery_rows import DeliveryCursor, DeliveryFilter, DeliveryRows
from schemas.delivery_records import DeliveryState
from server.problems import Problem

PAGE_ROWS_DEFAULT: Final = 50
NUMBER_MAX: Final = 2**63 - 1
STATES: Final[Sequence[EndpointState]] = get_args(EndpointState)
DELIVERY_STATES: Final[Sequence[DeliveryState]] = get_args(DeliveryState)
ERROR_CLASSES: Final[Sequence[ErrorClass]] = get_args(ErrorClass)

OF_PAGES: Final = ("limit", "cursor")
OF_ENDPOINTS: Final = ("state",)
OF_DELIVERIES: Final = ("endpoint", "event", "type", "state", "reason", "from", "to")


class PageRequest:
    """A request for a page: how many rows, behind which one, of which listing."""

    def __init__(self, query: bytes, listing: str, filters: Collection[str], tenant: str, page_max: int) -> None:
        """Raises Problem (400) for what the listing has no parameter for, or a size or a time that is none."""
        self.parameters = read_query(query, (*OF_PAGES, *filters))
        self.limit = read_count(self.parameters, "limit", min(PAGE_ROWS_DEFAULT, page_max), page_max)
        self._listing, self._tenant = listing, tenant
        self._texts = {name: "\x00".join(self.parameters[name]) for name in filters if name in self.parameters}

    def after(self, *kinds: str) -> list[Any] | None:
        """Return the key of the row that the page is behind, of these kinds. Raises Problem (400)."""
        cursor = single(self.parameters, "cursor")
        if cursor is None:
            return None
        parts = decode_cursor(cursor, self._listing, self._texts, self._tenant, len(kinds))
        try:
            return [_key_part(kind, text) for kind, text in zip(kinds, parts, strict=True)]
        except Problem:
            raise Problem("cursor", "It was not made here.") from None

    def page(self, documents: Sequence[dict[str, Any]], keys: Sequence[Sequence[object]]) -> dict[str, Any]:
        """Return a page of rows, one more than its size where there are more, and the cursor of the next one."""
        following = None
        if len(documents) > self.limit:
            key = [each.isoformat() if isinstance(each, datetime) else str(each) for each in keys[self.limit - 1]]
            following = encode_cursor(key, self._listing, self._texts, self._tenant)
        return {"items": documents[: self.limit], "next": following}


async def list_endpoints(store: EndpointStore, query: bytes, tenant: str, page_max: int) -> dict[str, Any]:
    """Return a page of endpoints, oldest first. Raises Problem (400)."""
    request = PageRequest(query, "endpoints", OF_ENDPOINTS, tenant, page_max)
    state = _choice(request.parameters, "state", STATES)
    after = request.after("time", "uuid")
    found = await store.page(
        None if after is None else (after[0], after[1]), request.limit + 1, () if state is None else (state,)
    )
    keys = await store.keys([endpoint.id for endpoint in found])
    documents = [endpoint_document(endpoint, keys) for endpoint in found]
    return request.page(documents, [(endpoint.created_at, endpoint.id) for endpoint in found])


async def list_deliveries(rows: DeliveryRows, query: bytes, tenant: str, page_max: int) -> dict[str, Any]:
    """Return a page of deliveries, those of the newest events first. Raises Problem (400), UnknownEndpoint."""
    request = PageRequest(query, "deliveries", OF_DELIVERIES, tenant, page_max)
    after = request.after("time", "uuid")
    cursor = None if after is None else DeliveryCursor(after[0], after[1])
    found = await rows.page(_filter(request.parameters), cursor, request.limit + 1)
    return request.page([delivery_document(each) for each in found], [(each.occurred_at, each.id) for each in found])


async def list_attempts(
    rows: DeliveryRows, delivery_id: UUID, query: bytes, tenant: str, page_max: int
) -> dict[str, Any]:
    """Return a page of a delivery's attempts, oldest first. Raises Problem (400), UnknownDelivery."""
    request = PageRequest(query, f"deliveries/{delivery_id}/attempts", (), tenant, page_max)
    after = request.after("time", "number", "number")
    delivery = await rows.find(delivery_id)
    behind = None if after is None else (after[0], after[1], after[2])
    found = await rows.attempts(delivery, behind, request.limit + 1)
    keys = [(each.attempted_at, each.hop, each.token) for each in found]
    return request.page([attempt_document(each) for each in found], keys)


def _filter(parameters: Parameters) -> DeliveryFilter:
    reason = single(parameters, "reason")
    status_code = int(reason) if reason is not None and is_status_code(reason) else None
    if reason is not None and status_code is None and reason not in ERROR_CLASSES:
        raise refused("reason", f"It is no status code, and none of {', '.join(ERROR_CLASSES)}.")
    return DeliveryFilter(
        endpoint_id=cast("UUID | None", _value(parameters, "endpoint", "uuid")),
        event_id=cast("UUID | None", _value(parameters, "event", "uuid")),
        type=cast("str | None", _value(parameters, "type", "text")),
        state=_choice(parameters, "state", DELIVERY_STATES),
        since=cast("datetime | None", _value(parameters, "from", "time")),
        before=cast("datetime | None", _value(parameters, "to", "time")),
        error_class=reason if status_code is None else None,
        status_code=status_code,
    )


def is_status_code(text: str) -> bool:
    """Return whether a text is three digits."""
    return text.isascii() and text.isdecimal() and len(text) == 3


def _value(parameters: Mapping[str, list[str]], name: str, kind: Any) -> object:
    text = single(dict(parameters), name)
    return None if text is None else read_value(name, kind, text)


def _choice(parameters: Parameters, name: str, choices: Sequence[Any]) -> Any:
    text = single(parameters, name)
    if text is not None and text not in choices:
        raise refused(name, f"It is none of {', '.join(choices)}.")
    return text


def _key_part(kind: str, text: str) -> object:
    if kind != "number":
        return read_value("cursor", cast("Any", kind), text)
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= NUMBER_MAX):
        raise refused("cursor", "It is no number.")
    return int(text)
