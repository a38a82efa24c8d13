"""What the OpenAPI document says of endpoints and deliveries, made from their fields and their problems."""

from __future__ import annotations

from typing import Final

from api.endpoint_fields import ACTION, ADDED, CHANGED, EXAMPLE, ROTATION
from api.endpoint_pages import DELIVERY_STATES, ERROR_CLASSES, STATES
from api.endpoint_requests import ACTIONS
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
    in_query,
    object_of,
    operation_of,
    or_null,
    page_cursor,
    page_limit,
    page_of,
    response_of,
)


def endpoint_paths() -> Document:
    """Return the paths of endpoints and deliveries."""
    one = {"parameters": [in_path("The endpoint's id.")]}
    listed = [
        page_limit(),
        page_cursor(),
        in_query("state", "Only those in this state; else all but removed.", enum=STATES),
    ]
    kinds = (*BODY_KINDS, "id-reused", "too-many-endpoints", "handshake")
    body = ("EndpointToAdd", True)
    added = operation_of("Add an endpoint", "201", "EndpointAdded", kinds, body=body, parameters=[KEY_PARAMETER])
    added["responses"]["200"] = response_of("It was added by an earlier request with the same key.", "Endpoint")
    paths = {
        "/endpoints": {
            "get": operation_of("Endpoints, oldest first", "200", "EndpointPage", ("cursor",), parameters=listed),
            "post": added,
        },
        "/endpoints/{id}": {
            **one,
            "get": operation_of("An endpoint", "200", "Endpoint", ("no-endpoint",)),
            "patch": operation_of(
                "Change how an endpoint's events are sent", "200", "Endpoint",
                (*BODY_KINDS, "no-endpoint", "endpoint-state", "handshake"), body=("EndpointChange", True),
            ),
            "delete": operation_of(
                "Remove an endpoint permanently, and its secrets", "204", None,
                (*BODY_KINDS, "no-endpoint", "endpoint-state"), body=("EndpointAction", False),
            ),
        },
        "/endpoints/{id}/rotate-key": {**one, "post": operation_of(
            "Give an endpoint another key, shown this once", "200", "EndpointKeyAdded",
            (*BODY_KINDS, "no-endpoint", "endpoint-state", "endpoint-keys"), body=("EndpointRotation", False),
            parameters=[KEY_PARAMETER],
        )},
        "/endpoints/{id}/test": {**one, "post": operation_of(
            "Send an endpoint one signed example", "200", "EndpointExample",
            (*BODY_KINDS, "no-endpoint", "endpoint-state"), body=("EndpointExampleChoice", False),
        )},
        "/endpoints/{id}/handshake": {**one, "post": operation_of(
            "Ask an endpoint's receiver again whether it agrees", "200", "Endpoint",
            (*BODY_KINDS, "no-endpoint", "endpoint-state", "handshake"), body=("EndpointAction", False),
        )},
    }  # fmt: skip
    of_actions = (*BODY_KINDS, "no-endpoint", "endpoint-state")
    for action in ACTIONS:
        done = operation_of(
            f"{action.title()} an endpoint", "200", "Endpoint", of_actions, body=("EndpointAction", False)
        )
        paths[f"/endpoints/{{id}}/{action}"] = {**one, "post": done}
    return paths | _delivery_paths()


def endpoint_schemas() -> Document:
    """Return the schemas that the paths name."""
    shown = {name: field.schema for name, field in ADDED.items() if name not in _NOT_SHOWN}
    key = {"id": A_UUID, "scheme": A_TEXT, "public_key": or_null(A_TEXT), "created_at": A_TIME,
           "expires_at": or_null(A_TIME)}  # fmt: skip
    endpoint = {
        "id": A_UUID, "state": {"type": "string", "enum": list(STATES)}, "state_reason": or_null(A_TEXT),
        "state_changed_at": A_TIME, **shown, "tenant": A_TEXT, "header_names": {"type": "array", "items": A_TEXT},
        "agreed_at": or_null(A_TIME), "agreed_rate_per_minute": or_null(AN_INT),
        "keys": {"type": "array", "items": object_of(key)}, "start_offsets": {"type": "array", "items": AN_INT},
        "starts_at": or_null(A_TIME), "created_at": A_TIME, "configured_at": A_TIME,
    }  # fmt: skip
    secret = {"secret": or_null(A_TEXT), "public_key": or_null(A_TEXT)}
    example = {
        "status": or_null(AN_INT), "outcome": A_TEXT, "error": or_null(A_TEXT), "why": A_TEXT,
        "seconds": {"type": "number"}, "answer": A_TEXT, "truncated": {"type": "boolean"},
    }  # fmt: skip
    return {
        "Endpoint": object_of(endpoint),
        "EndpointAdded": object_of({**endpoint, **secret}),
        "EndpointPage": page_of("Endpoint"),
        "EndpointToAdd": body_of(ADDED.values(), required=("url", "event_types")),
        "EndpointChange": body_of(CHANGED.values()),
        "EndpointAction": body_of(ACTION),
        "EndpointRotation": body_of(ROTATION),
        "EndpointKeyAdded": object_of({"id": A_UUID, "scheme": A_TEXT, **secret}),
        "EndpointExampleChoice": body_of(EXAMPLE),
        "EndpointExample": object_of(example),
        "Delivery": object_of(_DELIVERY),
        "DeliveryPage": page_of("Delivery"),
        "DeliveryAttempt": object_of(_ATTEMPT),
        "DeliveryAttemptPage": page_of("DeliveryAttempt"),
    }


def _delivery_paths() -> Document:
    one = {"parameters": [in_path("The delivery's id, which subscribers get as `webhook-id`.")]}
    filters = [
        in_query("endpoint", "Only those to this endpoint.", **A_UUID),
        in_query("event", "Only those of this event.", **A_UUID),
        in_query("type", "Only those of events of this type.", type="string", minLength=1, maxLength=200),
        in_query("state", "Only those in this state.", enum=DELIVERY_STATES),
        in_query("reason", f"A status code, or one of {', '.join(ERROR_CLASSES)}: of the last attempt."),
        in_query("from", "Only those of events at this time or later.", **A_TIME),
        in_query("to", "Only those of events before this time.", **A_TIME),
    ]
    listed = [page_limit(), page_cursor(), *filters]
    return {
        "/deliveries": {"get": operation_of("Deliveries, those of the newest events first", "200", "DeliveryPage",
                                          ("cursor", "no-endpoint"), parameters=listed)},
        "/deliveries/{id}": {**one, "get": operation_of("A delivery", "200", "Delivery", ("no-delivery",))},
        "/deliveries/{id}/attempts": {**one, "get": operation_of(
            "A delivery's attempts, oldest first, with the begin of request and answer", "200", "DeliveryAttemptPage",
            ("cursor", "no-delivery"), parameters=[page_limit(), page_cursor()],
        )},
    }  # fmt: skip


_NOT_SHOWN: Final = ("headers", "reason", "scheme", "from", "tenant")
_DELIVERY: Final[Document] = {
    "id": A_UUID, "state": {"type": "string", "enum": list(DELIVERY_STATES)}, "state_at": A_TIME, "why": A_TEXT,
    "endpoint_id": A_UUID, "event_id": A_UUID, "type": A_TEXT, "entity_id": A_UUID, "occurred_at": A_TIME,
    "source_partition": AN_INT, "source_offset": AN_INT, "source_rank": AN_INT, "stream": A_TEXT, "attempts": AN_INT,
    "status_code": or_null(AN_INT), "error_class": or_null(A_TEXT), "first_attempted_at": or_null(A_TIME),
    "last_attempted_at": or_null(A_TIME), "next_attempt_at": or_null(A_TIME), "redriven": AN_INT,
}  # fmt: skip
_ATTEMPT: Final[Document] = {
    "attempted_at": A_TIME, "attempt": AN_INT, "hop": AN_INT, "outcome": A_TEXT,
    "state": {"type": "string", "enum": list(DELIVERY_STATES)}, "stream": A_TEXT, "duration_us": AN_INT,
    "status_code": or_null(AN_INT), "error_class": or_null(A_TEXT), "why": A_TEXT,
    "next_attempt_at": or_null(A_TIME), "request": A_TEXT, "answer": A_TEXT,
}  # fmt: skip
