"""Bodies of requests to send deliveries again, and to search for missing ones: what they ask for, what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from api.body_fields import (
    REASON,
    BodyField,
    FieldRefused,
    boolean_field,
    choice_field,
    number_field,
    past_time_of,
    text_field,
    time_of,
)
from api.endpoint_bodies import body_values, missing_fields, pointer_to, refuse_fields
from api.endpoint_pages import ERROR_CLASSES, is_status_code
from api.parameters import TEXT_MAX_CHARACTERS, read_value
from deliveries.redrive.redrive_plan import RATE_PER_SECOND
from deliveries.redrive.selection import RedriveSelection
from deliveries.state.delivery_rows import DeliveryFilter
from schemas.delivery_records import DeliveryState
from server.problems import FieldError, Problem

KIND: Final = "redrive"
DELIVERIES_MAX: Final = 100
RATE_MAX_PER_SECOND: Final = 1_000
REDRIVEN_STATES: Final = ("dead", "cancelled", "delivered")

DEFAULT_REASONS: Final = {"retry": "Its receivers work again.", "recover": "The endpoint has recovered."}


SEARCH: Final = "search"


class AskedSearch(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asks for: what an endpoint was not sent since a time, and whether that is ordered at once."""

    endpoint_id: UUID
    since: datetime
    rate_per_second: int
    execute: bool
    reason: str

    def digest(self) -> bytes:
        """Return a digest of what is asked for, by which a repeat is told from another request."""
        asked = [self.endpoint_id, self.since, self.rate_per_second, self.execute]
        return hashlib.sha256(msgspec.json.encode(asked)).digest()


def read_asked_search(document: Mapping[str, Any]) -> AskedSearch:
    """Return what a body asks for. Raises a problem (422) with an error for each field that does not fit."""
    missing = missing_fields(document, ("endpoint", "from"))
    try:
        values = body_values(document, SEARCHED, SEARCH)
    except Problem as problem:
        raise Problem(SEARCH, errors=[*problem.errors, *missing]) from None
    refuse_fields(missing, SEARCH)
    return AskedSearch(
        endpoint_id=values["endpoint"],
        since=values["from"],
        rate_per_second=values.get("rate_per_second", RATE_PER_SECOND),
        execute=values.get("execute", False),
        reason=values.get("reason", "The endpoint was not sent them."),
    )


class AskedRedrive(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asks for. `since` is of the events for a retry, of what became of them for a recovery."""

    kind: Literal["retry", "recover"]
    filter: DeliveryFilter
    states: tuple[DeliveryState, ...]
    delivery_ids: tuple[UUID, ...]
    since: datetime | None
    rate_per_second: int
    execute: bool
    reason: str

    def selection(self, began_at: datetime | None = None) -> RedriveSelection:
        """Return the deliveries that are asked for; `began_at` is when the endpoint to recover began to fail."""
        if self.kind == "recover":
            return RedriveSelection(
                filter=self.filter, states=("dead", "cancelled"), state_since=self.since or began_at
            )
        asked = msgspec.structs.replace(self.filter, since=self.since)
        return RedriveSelection(filter=asked, states=self.states, delivery_ids=self.delivery_ids)

    def digest(self) -> bytes:
        """Return a digest of what is asked for, by which a repeat is told from another request."""
        asked = [self.kind, self.filter, self.states, self.delivery_ids, self.since, self.rate_per_second]
        return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).digest()


def read_redrive(document: Mapping[str, Any]) -> AskedRedrive:
    """Return what a body asks for. Raises a problem (422) with an error for each field that does not fit."""
    missing = missing_fields(document, ("kind",))
    try:
        values = body_values(document, REDRIVEN, KIND)
    except Problem as problem:
        raise Problem(KIND, errors=[*problem.errors, *missing]) from None
    refuse_fields(missing, KIND)
    chosen = values.keys() & _CHOOSING
    if values["kind"] == "recover":
        refuse_fields(missing_fields(document, ("endpoint",)), KIND)
        refuse_fields(
            [FieldError("A recovery takes `endpoint` and `from` alone.", pointer_to(name))
             for name in sorted(chosen - {"endpoint", "from"})],
            KIND,
        )  # fmt: skip
    elif not chosen - {"states"}:
        why = "Choose deliveries, by their ids or by endpoint, event, type, time or error."
        raise Problem(KIND, errors=(FieldError(why, pointer_to("deliveries")),))
    error = values.get("error")
    return AskedRedrive(
        kind=values["kind"],
        filter=DeliveryFilter(
            endpoint_id=values.get("endpoint"), event_id=values.get("event"), type=values.get("type"),
            before=values.get("to"), error_class=error if isinstance(error, str) else None,
            status_code=error if isinstance(error, int) else None,
        ),
        states=values.get("states", ("dead",)),
        delivery_ids=values.get("deliveries", ()),
        since=values.get("from"),
        rate_per_second=values.get("rate_per_second", RATE_PER_SECOND),
        execute=values.get("execute", False),
        reason=values.get("reason", DEFAULT_REASONS[values["kind"]]),
    )  # fmt: skip


def _uuid_of(value: Any) -> UUID:
    try:
        if isinstance(value, str):
            read = read_value("id", "uuid", value)
            assert isinstance(read, UUID), "what is of this kind is a UUID"
            return read
    except Problem:
        pass
    raise FieldRefused("It is no UUID, such as 4228a261-6de2-546e-aab9-13a90b189527.")


def _uuids_of(value: Any) -> tuple[UUID, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= DELIVERIES_MAX:
        raise FieldRefused(f"It is no list of 1 to {DELIVERIES_MAX} ids.")
    return tuple(sorted({_uuid_of(each) for each in value}))


def _states_of(value: Any) -> tuple[DeliveryState, ...]:
    if not isinstance(value, list) or not value or any(each not in REDRIVEN_STATES for each in value):
        raise FieldRefused(f"It is no list of {', '.join(REDRIVEN_STATES)}.")
    return tuple(sorted(set(value)))


def _error_of(value: Any) -> str | int:
    """Return a class of errors, or a status code as a number."""
    if isinstance(value, str) and value in ERROR_CLASSES:
        return value
    if isinstance(value, str) and is_status_code(value):
        return int(value)
    raise FieldRefused(f"It is no status code, and none of {', '.join(ERROR_CLASSES)}.")


_UUID: Final[dict[str, Any]] = {"type": "string", "format": "uuid"}
_TIME: Final[dict[str, Any]] = {"type": "string", "format": "date-time"}
_RATE: Final = number_field("rate_per_second", f"Most a second; {RATE_PER_SECOND} without it.", 1, RATE_MAX_PER_SECOND)
SEARCHED: Final[Mapping[str, BodyField]] = {
    each.name: each
    for each in (
        BodyField(name="endpoint", meaning="The endpoint that was not sent them.", schema=_UUID, read=_uuid_of),
        BodyField(name="from", meaning="Events published at this time or later.", schema=_TIME, read=past_time_of),
        _RATE,
        boolean_field("execute", "Whether what is missing is ordered as it is found; without it it is told alone."),
        REASON,
    )
}
REDRIVEN: Final[Mapping[str, BodyField]] = {
    each.name: each
    for each in (
        choice_field(
            "kind", "`retry`: deliveries that are chosen; `recover`: all that died of an endpoint's last trouble.",
            "retry", "recover",
        ),
        BodyField(name="deliveries", meaning="Ids of deliveries.", read=_uuids_of, schema={
            "type": "array", "items": _UUID, "minItems": 1, "maxItems": DELIVERIES_MAX,
        }),
        BodyField(name="endpoint", meaning="Those to this endpoint.", schema=_UUID, read=_uuid_of),
        BodyField(name="event", meaning="Those of this event.", schema=_UUID, read=_uuid_of),
        text_field("type", "Those of events of this type.", TEXT_MAX_CHARACTERS, min_characters=1),
        BodyField(
            name="error", meaning="Those whose last attempt had this status code, such as 503, or this error.",
            schema={"type": "string", "pattern": f"^([0-9]{{3}}|{'|'.join(ERROR_CLASSES)})$"}, read=_error_of,
        ),
        BodyField(
            name="from", schema=_TIME, read=past_time_of,
            meaning="Those of events at this time or later; of a recovery, those that died then or later.",
        ),
        BodyField(name="to", meaning="Those of events before this time.", schema=_TIME, read=time_of),
        BodyField(name="states", meaning="Those in one of these states; `dead` without it.", read=_states_of, schema={
            "type": "array", "items": {"type": "string", "enum": list(REDRIVEN_STATES)}, "minItems": 1,
        }),
        _RATE,
        boolean_field("execute", "Whether it is ordered; without it the plan alone is answered."),
        REASON,
    )
}  # fmt: skip
_CHOOSING: Final = frozenset({"deliveries", "endpoint", "event", "type", "error", "from", "to", "states"})
