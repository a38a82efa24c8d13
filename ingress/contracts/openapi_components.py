"""The schemas and parameters of the OpenAPI document, made from the event structs and the problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ingress.batches import EVENTS_MAX
from schemas.events import EVENT_TYPES, Event
from schemas.json_events import OUTSIDE_PREFIX
from server.problems import URN, FieldError, kinds

Json = dict[str, Any]

REF: Final = "#/components/schemas/"
VISIBLE: Final = "^[!-~]{1,256}$"
WEBHOOK_ID: Final = r"^[!-Z\\-z|}~]{1,256}$"
OUTSIDE: Final[Mapping[str, type[Event]]] = {
    name: event for name, event in EVENT_TYPES.items() if name.startswith(OUTSIDE_PREFIX)
}
"""The event types that may come from outside."""
_GIVEN_OTHERWISE: Final = ("event_id", "occurred_at")
_WITH_RETRY_AFTER: Final = (429, 503)


def schema_ref(name: str) -> Json:
    """Return a reference to a schema."""
    return {"$ref": REF + name}


def schemas() -> Json:
    """Return every schema by name."""
    _, made = msgspec.json.schema_components([*OUTSIDE.values(), FieldError], ref_template=REF + "{name}")
    by_name = {name: schema for name, schema in made.items() if name not in _names(OUTSIDE.values())}
    for event_type, event in OUTSIDE.items():
        by_name |= _of_event(event_type, event, made[event.__name__])
    by_name["CloudEvent"] = {
        "oneOf": [schema_ref(f"{event.__name__}CloudEvent") for event in OUTSIDE.values()],
        "discriminator": {
            "propertyName": "type",
            "mapping": {name: f"{REF}{event.__name__}CloudEvent" for name, event in OUTSIDE.items()},
        },
    }
    by_name["CloudEventBatch"] = {
        "type": "array",
        "items": schema_ref("CloudEvent"),
        "minItems": 1,
        "maxItems": EVENTS_MAX,
    }
    return dict(sorted((by_name | _answers()).items()))


def parameters() -> Json:
    """Return the headers of signed requests, by name; each may come once."""
    visible = {"type": "string", "pattern": VISIBLE}
    return {
        "WebhookId": _header(
            "webhook-id",
            "The message's id; the same id is always the same message.",
            {"type": "string", "pattern": WEBHOOK_ID},
        ),
        "WebhookTimestamp": _header(
            "webhook-timestamp",
            "Seconds since 1970; at most 5 minutes from the server's clock, either way.",
            {"type": "string", "pattern": "^[0-9]{1,12}$"},
        ),
        "PlantProducer": _header(
            "plant-producer",
            "Whose keys to try; needed with application/cloudevents-batch+json and application/x-ndjson.",
            {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,62}$"},
            required=False,
        ),
        "Traceparent": _header(
            "traceparent", "W3C Trace Context; one that is not well-formed is skipped.", {"type": "string"}, False
        ),
        "CeSpecversion": _header(
            "ce-specversion", "Binary mode only, for which a producer needs leave.", {"const": "1.0"}, required=False
        ),
        "CeId": _header("ce-id", "Binary mode only; equal to webhook-id.", visible, required=False),
        "CeSource": _header("ce-source", "Binary mode only.", visible, required=False),
        "CeType": _header("ce-type", "Binary mode only.", {"enum": list(OUTSIDE)}, required=False),
        "CeTraceparent": _header(
            "ce-traceparent", "Binary mode only; goes before traceparent.", {"type": "string"}, required=False
        ),
        "CeTime": _header("ce-time", "Binary mode only.", {"type": "string", "format": "date-time"}, required=False),
    }


def problem_responses(wanted: Iterable[str]) -> dict[str, Json]:
    """Return the response of each status, for these kinds of problem."""
    by_status: dict[int, list[str]] = {}
    for kind in wanted:
        by_status.setdefault(kinds()[kind][0], []).append(kind)
    return {str(status): _problem_response(status, by_status[status]) for status in sorted(by_status)}


def _problem_response(status: int, problem_kinds: list[str]) -> Json:
    types = [URN + kind for kind in problem_kinds]
    described = " ".join(f"`{kind}`: {kinds()[kind][1]}." for kind in problem_kinds)
    schema = {"allOf": [schema_ref("Problem"), {"properties": {"type": {"enum": types}, "status": {"const": status}}}]}
    response: Json = {"description": described, "content": {"application/problem+json": {"schema": schema}}}
    if status in _WITH_RETRY_AFTER:
        response["headers"] = {
            "retry-after": {
                "description": "Seconds to wait before the same request is sent again.",
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
            }
        }
    return response


def _of_event(event_type: str, event: type[Event], schema: Json) -> Json:
    """Return an event's schemas: its data alone, as a Standard Webhooks payload, and as a CloudEvent."""
    name = event.__name__
    time = {"type": "string", "format": "date-time", "description": "When it happened; needs a time zone."}
    data = schema | {
        "title": f"{name}Data",
        "properties": {key: kind for key, kind in schema["properties"].items() if key not in _GIVEN_OTHERWISE},
        "required": [key for key in schema["required"] if key not in _GIVEN_OTHERWISE],
    }
    payload = {"type": {"const": event_type}, "timestamp": time, "data": schema_ref(f"{name}Data")}
    text = {"type": "string", "pattern": VISIBLE}
    envelope = {
        "specversion": {"const": "1.0"},
        "id": text,
        "source": text,
        "type": {"const": event_type},
        "time": time,
        "datacontenttype": {"const": "application/json"},
        "traceparent": {"type": ["string", "null"]},
        "data": schema_ref(f"{name}Data"),
    }
    return {
        f"{name}Data": data,
        f"{name}Webhook": _object(payload, required=("timestamp", "data")),
        f"{name}CloudEvent": _object(envelope, required=("specversion", "id", "source", "type", "time", "data")),
    }


def _answers() -> Json:
    whole = {"type": "integer", "minimum": 0}
    stored = {
        "event_id": {"type": "string", "format": "uuid"},
        "topic": {"type": "string"},
        "partition": whole,
        "offset": whole,
    }
    problem = {
        "type": {"type": "string", "enum": [URN + kind for kind in kinds()]},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": schema_ref("FieldError")},
    }
    return {
        "Stored": _object(
            stored, required=tuple(stored), title="Where the event is, once every in-sync replica has it."
        ),
        "Problem": _object(problem, required=("type", "title", "status"), title="RFC 9457 problem details."),
        "Refused": _object({"problem": schema_ref("Problem")}, required=("problem",)),
        "BatchAnswer": _object(
            {
                "results": {
                    "type": "array",
                    "items": {"oneOf": [schema_ref("Stored"), schema_ref("Refused")]},
                }
            },
            required=("results",),
            title="A result for each event, in order.",
        ),
        "RegistryError": _object(
            {"error_code": {"type": "integer"}, "message": {"type": "string"}}, required=("error_code", "message")
        ),
    }


def _object(properties: Mapping[str, object], *, required: Iterable[str], title: str = "") -> Json:
    described = {"description": title} if title else {}
    return {**described, "type": "object", "properties": dict(properties), "required": list(required)}


def _header(name: str, description: str, schema: Json, required: bool = True) -> Json:
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def _names(events: Iterable[type[Event]]) -> set[str]:
    return {event.__name__ for event in events}
