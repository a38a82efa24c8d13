"""What the OpenAPI document says of redrives, and of searches for what is missing."""

from __future__ import annotations

from typing import Final, get_args

from api.openapi_parts import (
    A_TEXT,
    A_TIME,
    A_UUID,
    AN_INT,
    BODY_KINDS,
    KEY_PARAMETER,
    Document,
    body_of,
    in_path,
    object_of,
    operation_of,
    or_null,
    page_cursor,
    page_limit,
    page_of,
    response_of,
)
from api.redrive_bodies import REDRIVEN, SEARCHED
from deliveries.redrive.missing_searches import SearchState
from deliveries.redrive.orders import RedriveKind, RedriveState

_KINDS: Final = tuple(kind for kind in BODY_KINDS if kind != "endpoint")
_COUNTS: Final[Document] = {"type": "object", "additionalProperties": AN_INT}
_REDRIVE: Final[Document] = {
    "number": AN_INT, "kind": {"type": "string", "enum": list(get_args(RedriveKind))},
    "selection": {"type": "object"}, "reason": A_TEXT, "ordered_by": A_TEXT, "ordered_at": A_TIME,
    "rate_per_second": AN_INT, "state": {"type": "string", "enum": list(get_args(RedriveState))},
    "ended_at": or_null(A_TIME), "operation_id": A_UUID, "deliveries": AN_INT, "queued": AN_INT,
    "unfound": AN_INT,
}  # fmt: skip


def redrive_paths() -> Document:
    """Return the paths of redrives and searches."""
    one = {"parameters": [in_path("The redrive's number.", "number", {**AN_INT, "minimum": 1})]}
    asked = operation_of(
        "Plan to send deliveries again, and order it if `execute` says so", "200", "RedrivePlan",
        (*_KINDS, "redrive", "no-endpoint", "no-delivery", "id-reused", "too-many-redrives"),
        body=("RedriveToPlan", True), parameters=[KEY_PARAMETER],
    )  # fmt: skip
    searched = operation_of(
        "Search for the events that an endpoint asks for and was not sent; order them if `execute` says so", "202",
        "Search", (*_KINDS, "search", "no-endpoint", "id-reused", "too-many-searches", "too-many-redrives"),
        body=("SearchToMake", True), parameters=[KEY_PARAMETER],
    )  # fmt: skip
    searched["responses"]["200"] = response_of("It was asked for before, with this key.", "Search")
    by_number = {"parameters": [in_path("The search's number.", "number", {**AN_INT, "minimum": 1})]}
    asked["responses"]["201"] = response_of("It is ordered.", "RedrivePlan")
    return {
        "/redrives": {
            "get": operation_of(
                "Redrives that the tenant's tokens ordered, newest first", "200", "RedrivePage", ("cursor",),
                parameters=[page_limit(), page_cursor()],
            ),
            "post": asked,
        },
        "/redrives/{number}": {**one, "get": operation_of(
            "A redrive, and how far it is", "200", "RedriveProgress", ("no-redrive",)
        )},
        "/redrives/{number}/stop": {**one, "post": operation_of(
            "Stop a redrive: what is on Kafka is sent, and nothing else of it", "200", "RedriveProgress",
            (*_KINDS, "redrive", "no-redrive"), body=("EndpointAction", False),
        )},
        "/searches": {
            "get": operation_of(
                "Searches that the tenant's tokens asked for, newest first", "200", "SearchPage", ("cursor",),
                parameters=[page_limit(), page_cursor()],
            ),
            "post": searched,
        },
        "/searches/{number}": {**by_number, "get": operation_of(
            "A search, and what it found: a dispatcher makes it some moments after it was asked for", "200", "Search",
            ("no-search",),
        )},
    }  # fmt: skip


def redrive_schemas() -> Document:
    """Return the schemas that the paths name."""
    group = {"endpoint_id": A_UUID, "endpoint_state": A_TEXT, "state": A_TEXT, "type": A_TEXT,
             "deliveries": AN_INT}  # fmt: skip
    redrive = object_of(_REDRIVE)
    found = {
        "deliveries": AN_INT, "rate_per_second": AN_INT, "seconds": {"type": "number"},
        "groups": {"type": "array", "items": object_of(group)}, "left_out": _COUNTS,
        "examples": {"type": "array", "items": A_UUID},
    }  # fmt: skip
    plan = {**found, "redrive": {**redrive, "type": ["object", "null"]}}
    search = {
        "number": AN_INT, "operation_id": A_UUID, "endpoint_id": A_UUID, "since": A_TIME, "rate_per_second": AN_INT,
        "execute": {"type": "boolean"}, "reason": A_TEXT, "asked_by": A_TEXT, "asked_at": A_TIME,
        "state": {"type": "string", "enum": list(get_args(SearchState))}, "ended_at": or_null(A_TIME),
        "why": or_null(A_TEXT), "compared": or_null(AN_INT), "redrive": or_null(AN_INT),
        "ordered": or_null(AN_INT),
        "plan": {**object_of({**found, "undispatched": or_null(AN_INT)}), "type": ["object", "null"]},
    }  # fmt: skip
    return {
        "Redrive": redrive,
        "RedrivePage": page_of("Redrive"),
        "RedrivePlan": object_of(plan),
        "RedriveProgress": object_of({**_REDRIVE, "recorded": _COUNTS}),
        "Search": object_of(search),
        "SearchPage": page_of("Search"),
        "SearchToMake": body_of(SEARCHED.values(), required=("endpoint", "from")),
        "RedriveToPlan": body_of(REDRIVEN.values(), required=("kind",)),
    }
