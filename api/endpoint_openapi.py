"""What the OpenAPI document says of endpoints and deliveries, made from their fields and their problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from api.endpoint_fields import ACTION, ADDED, CHANGED, EXAMPLE, ROTATION, BodyField
from api.endpoint_pages import DELIVERY_STATES, ERROR_CLASSES, PAGE_ROWS_DEFAULT, STATES
from api.endpoint_requests import ACTIONS
from server.problems import URN, endpoint_kinds

Document = dict[str, Any]

_REF: Final = "#/components/schemas/"
_UUID: Final[Document] = {"type": "string", "format": "uuid"}
_TIME: Final[Document] = {"type": "string", "format": "date-time"}
_TEXT: Final[Document] = {"type": "string"}
_NUMBER: Final[Document] = {"type": "integer"}
_EVERYWHERE: Final = (
    "malformed-request", "parameter", "unauthorized", "scope", "slow-request", "too-many-requests", "body-too-large",
    "headers-too-large", "unexpected", "database-unavailable", "overloaded", "query-timeout", "starting", "method",
    "not-found",
)  # fmt: skip
_BODY: Final = ("malformed-body", "media-type", "endpoint", "log-unavailable", "misconfigured")
_KEY: Final[Document] = {
    "name": "idempotency-key",
    "in": "header",
    "description": "1 to 200 visible ASCII characters: a request that comes again with it adds no second endpoint.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
}


def endpoint_paths() -> Document:
    """Return the paths of endpoints and deliveries."""
    one = {"parameters": [_path_id("The endpoint's id.")]}
    listed = [_limit(), _cursor(), _query("state", "Only those in this state; else all but removed.", enum=STATES)]
    kinds = (*_BODY, "id-reused", "too-many-endpoints", "handshake")
    body = ("EndpointToAdd", True)
    added = _operation("Add an endpoint", "201", "EndpointAdded", kinds, body=body, parameters=[_KEY])
    added["responses"]["200"] = _answer("It was added by an earlier request with the same key.", "Endpoint")
    paths = {
        "/endpoints": {
            "get": _operation("Endpoints, oldest first", "200", "EndpointPage", ("cursor",), parameters=listed),
            "post": added,
        },
        "/endpoints/{id}": {
            **one,
            "get": _operation("An endpoint", "200", "Endpoint", ("no-endpoint",)),
            "patch": _operation(
                "Change how an endpoint's events are sent", "200", "Endpoint",
                (*_BODY, "no-endpoint", "endpoint-state", "handshake"), body=("EndpointChange", True),
            ),
            "delete": _operation(
                "Remove an endpoint permanently, and its secrets", "204", None,
                (*_BODY, "no-endpoint", "endpoint-state"), body=("EndpointAction", False),
            ),
        },
        "/endpoints/{id}/rotate-key": {**one, "post": _operation(
            "Give an endpoint another key, shown this once", "200", "EndpointKeyAdded",
            (*_BODY, "no-endpoint", "endpoint-state", "endpoint-keys"), body=("EndpointRotation", False),
        )},
        "/endpoints/{id}/test": {**one, "post": _operation(
            "Send an endpoint one signed example", "200", "EndpointExample", (*_BODY, "no-endpoint", "endpoint-state"),
            body=("EndpointExampleChoice", False),
        )},
        "/endpoints/{id}/handshake": {**one, "post": _operation(
            "Ask an endpoint's receiver again whether it agrees", "200", "Endpoint",
            (*_BODY, "no-endpoint", "endpoint-state", "handshake"), body=("EndpointAction", False),
        )},
    }  # fmt: skip
    of_actions = (*_BODY, "no-endpoint", "endpoint-state")
    for action in ACTIONS:
        done = _operation(
            f"{action.title()} an endpoint", "200", "Endpoint", of_actions, body=("EndpointAction", False)
        )
        paths[f"/endpoints/{{id}}/{action}"] = {**one, "post": done}
    return paths | _delivery_paths()


def endpoint_schemas() -> Document:
    """Return the schemas that the paths name."""
    shown = {name: field.schema for name, field in ADDED.items() if name not in _NOT_SHOWN}
    key = {"id": _UUID, "scheme": _TEXT, "public_key": _or_null(_TEXT), "created_at": _TIME,
           "expires_at": _or_null(_TIME)}  # fmt: skip
    endpoint = {
        "id": _UUID, "state": {"type": "string", "enum": list(STATES)}, "state_reason": _or_null(_TEXT),
        "state_changed_at": _TIME, **shown, "tenant": _TEXT, "header_names": {"type": "array", "items": _TEXT},
        "agreed_at": _or_null(_TIME), "agreed_rate_per_minute": _or_null(_NUMBER),
        "keys": {"type": "array", "items": _object(key)}, "start_offsets": {"type": "array", "items": _NUMBER},
        "starts_at": _or_null(_TIME), "created_at": _TIME, "configured_at": _TIME,
    }  # fmt: skip
    secret = {"secret": _or_null(_TEXT), "public_key": _or_null(_TEXT)}
    example = {
        "status": _or_null(_NUMBER), "outcome": _TEXT, "error": _or_null(_TEXT), "why": _TEXT,
        "seconds": {"type": "number"}, "answer": _TEXT, "truncated": {"type": "boolean"},
    }  # fmt: skip
    return {
        "Endpoint": _object(endpoint),
        "EndpointAdded": _object({**endpoint, **secret}),
        "EndpointPage": _page("Endpoint"),
        "EndpointToAdd": _body(ADDED.values(), required=("url", "event_types")),
        "EndpointChange": _body(CHANGED.values()),
        "EndpointAction": _body(ACTION),
        "EndpointRotation": _body(ROTATION),
        "EndpointKeyAdded": _object({"id": _UUID, "scheme": _TEXT, **secret}),
        "EndpointExampleChoice": _body(EXAMPLE),
        "EndpointExample": _object(example),
        "Delivery": _object(_DELIVERY),
        "DeliveryPage": _page("Delivery"),
        "DeliveryAttempt": _object(_ATTEMPT),
        "DeliveryAttemptPage": _page("DeliveryAttempt"),
    }


def _delivery_paths() -> Document:
    one = {"parameters": [_path_id("The delivery's id, which subscribers get as `webhook-id`.")]}
    filters = [
        _query("endpoint", "Only those to this endpoint.", **_UUID),
        _query("event", "Only those of this event.", **_UUID),
        _query("type", "Only those of events of this type.", type="string", minLength=1, maxLength=200),
        _query("state", "Only those in this state.", enum=DELIVERY_STATES),
        _query("reason", f"A status code, or one of {', '.join(ERROR_CLASSES)}: of the last attempt."),
        _query("from", "Only those of events at this time or later.", **_TIME),
        _query("to", "Only those of events before this time.", **_TIME),
    ]
    listed = [_limit(), _cursor(), *filters]
    return {
        "/deliveries": {"get": _operation("Deliveries, those of the newest events first", "200", "DeliveryPage",
                                          ("cursor", "no-endpoint"), parameters=listed)},
        "/deliveries/{id}": {**one, "get": _operation("A delivery", "200", "Delivery", ("no-delivery",))},
        "/deliveries/{id}/attempts": {**one, "get": _operation(
            "A delivery's attempts, oldest first, with the begin of request and answer", "200", "DeliveryAttemptPage",
            ("cursor", "no-delivery"), parameters=[_limit(), _cursor()],
        )},
    }  # fmt: skip


def _operation(
    summary: str,
    status: str,
    schema: str | None,
    kinds: Iterable[str],
    *,
    body: tuple[str, bool] | None = None,
    parameters: Sequence[Document] = (),
) -> Document:
    """Return an operation; `body` is its schema, and whether it has to be there."""
    operation: Document = {
        "summary": summary,
        "description": "Scope `endpoints`.",
        "tags": ["endpoints"],
        "responses": {status: _answer("Done.", schema), **_problems((*_EVERYWHERE, *kinds))},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        content = {"application/json": {"schema": {"$ref": _REF + body[0]}}}
        operation["requestBody"] = {"required": body[1], "content": content}
    return operation


def _answer(description: str, schema: str | None) -> Document:
    if schema is None:
        return {"description": description}
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _REF + schema}}}}


def _problems(kinds: Iterable[str]) -> Document:
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(endpoint_kinds()[kind][0], []).append(kind)
    return {str(status): _problem(status, of_status) for status, of_status in sorted(by_status.items())}


def _problem(status: int, kinds: list[str]) -> Document:
    described = " ".join(f"`{kind}`: {endpoint_kinds()[kind][1]}." for kind in kinds)
    types = {"properties": {"type": {"enum": [URN + kind for kind in kinds]}, "status": {"const": status}}}
    schema = {"allOf": [{"$ref": f"{_REF}Problem"}, types]}
    return {"description": described, "content": {"application/problem+json": {"schema": schema}}}


def _object(properties: Document) -> Document:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _page(of: str) -> Document:
    following = {"type": ["string", "null"], "description": "The cursor of the next page."}
    return _object({"items": {"type": "array", "items": {"$ref": _REF + of}}, "next": following})


def _body(fields: Iterable[BodyField], required: Sequence[str] = ()) -> Document:
    properties = {each.name: {**each.schema, "description": each.meaning} for each in fields}
    schema: Document = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def _or_null(schema: Document) -> Document:
    return {**schema, "type": [schema["type"], "null"]}


def _path_id(description: str) -> Document:
    return {"name": "id", "in": "path", "required": True, "description": description, "schema": _UUID}


def _limit() -> Document:
    return _query("limit", f"Most rows of the page; {PAGE_ROWS_DEFAULT} without it.", type="integer", minimum=1)


def _cursor() -> Document:
    return _query("cursor", "`next` of the page before, with the same filters.")


def _query(name: str, description: str, **schema: Any) -> Document:
    own = {"type": "string", **{key: list(value) if key == "enum" else value for key, value in schema.items()}}
    return {"name": name, "in": "query", "description": description, "schema": own}


_NOT_SHOWN: Final = ("headers", "reason", "scheme", "from", "tenant")
_DELIVERY: Final[Document] = {
    "id": _UUID, "state": {"type": "string", "enum": list(DELIVERY_STATES)}, "state_at": _TIME, "why": _TEXT,
    "endpoint_id": _UUID, "event_id": _UUID, "type": _TEXT, "entity_id": _UUID, "occurred_at": _TIME,
    "source_partition": _NUMBER, "source_offset": _NUMBER, "source_rank": _NUMBER, "stream": _TEXT, "attempts": _NUMBER,
    "status_code": _or_null(_NUMBER), "error_class": _or_null(_TEXT), "first_attempted_at": _or_null(_TIME),
    "last_attempted_at": _or_null(_TIME), "next_attempt_at": _or_null(_TIME), "redriven": _NUMBER,
}  # fmt: skip
_ATTEMPT: Final[Document] = {
    "attempted_at": _TIME, "attempt": _NUMBER, "hop": _NUMBER, "outcome": _TEXT,
    "state": {"type": "string", "enum": list(DELIVERY_STATES)}, "stream": _TEXT, "duration_us": _NUMBER,
    "status_code": _or_null(_NUMBER), "error_class": _or_null(_TEXT), "why": _TEXT,
    "next_attempt_at": _or_null(_TIME), "request": _TEXT, "answer": _TEXT,
}  # fmt: skip
