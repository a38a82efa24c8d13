"""The OpenAPI 3.1 document of ingress, made from its routes, the event structs and the problems.

Served at `/openapi.json`; committed as docs/reference/openapi.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from ingress.contracts.openapi_components import OUTSIDE, Json, parameters, problem_responses, schema_ref, schemas
from ingress.contracts.openapi_registry import registry_paths
from server.problems import kinds

_NO_ANSWER_TO_A_SIGNED_POST: Final = ("not-found", "method")
_ANY_REQUEST: Final = ("malformed-request", "slow-request", "headers-too-large", "unexpected", "overloaded")
_CLOUD_EVENT_HEADERS: Final = ("CeSpecversion", "CeId", "CeSource", "CeType", "CeTime", "CeTraceparent")

_ADMIN_SERVER: Final = {
    "url": "http://127.0.0.1:8090",
    "description": "The admin listener, PLANT_INGRESS_ADMIN_ADDRESS.",
}
_DESCRIPTION: Final = """\
Signed webhooks in, events on Kafka out; and, at an address of its own, a read-only schema registry.

A request is signed by [Standard Webhooks](https://www.standardwebhooks.com): `webhook-signature` holds one or more
signatures of `webhook-id + "." + webhook-timestamp + "." + body`, parted by spaces: `v1,` and base64 of HMAC-SHA256, or
`v1a,` and base64 of ed25519. Sending the same request again stores the event once: retry on a lost connection, 429 and
503, after the seconds that `retry-after` names; every other answer is final.
"""


def openapi_text(webhooks: Mapping[str, str | None]) -> str:
    """Return the document as indented JSON. `webhooks`: path to event type, None where the CloudEvent says it."""
    return msgspec.json.format(msgspec.json.encode(openapi_document(webhooks)), indent=2).decode() + "\n"


def openapi_document(webhooks: Mapping[str, str | None]) -> Json:
    """Return the document as data."""
    paths = {
        path: {"post": _cloud_events() if event_type is None else _webhook(event_type)}
        for path, event_type in webhooks.items()
    }
    paths |= {**_any_problem(_at_admin_address(registry_paths())), **_any_problem(_process_paths())}
    paths |= _any_problem(_at_admin_address(_metrics_path()))
    responses = _share_responses(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Plant ingress", "version": "1", "description": _DESCRIPTION},
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "tags": [{"name": "events"}, {"name": "registry"}, {"name": "process"}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "parameters": parameters(),
            "responses": responses,
            "securitySchemes": {
                "standardWebhooks": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "webhook-signature",
                    "description": "One or more Standard Webhooks signatures of the id, the timestamp and the body.",
                }
            },
        },
    }


_BULK_LOAD: Final = (
    "A structured CloudEvent a line. It may be compressed, with Content-Encoding: gzip; the signature covers the"
    " compressed bytes."
)


def _webhook(event_type: str) -> Json:
    event = OUTSIDE[event_type]
    body = {"application/json": {"schema": schema_ref(f"{event.__name__}Webhook")}}
    stored = {"200": _json("The event is stored.", "Stored")}
    return _signed(f"Send {event_type}", body, stored)


def _cloud_events() -> Json:
    single, results = schema_ref("Stored"), schema_ref("BatchAnswer")
    answers: Json = {
        "200": {
            "description": "Stored: a record position, a batch's results, or a line for each result and a summary.",
            "content": {
                "application/json": {"schema": {"anyOf": [single, results]}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
        "207": _json("Some events of the batch are stored, and some are refused permanently.", "BatchAnswer"),
    }
    body: Json = {
        "application/cloudevents+json": {"schema": schema_ref("CloudEvent")},
        "application/cloudevents-batch+json": {"schema": schema_ref("CloudEventBatch")},
        "application/x-ndjson": {"schema": {"type": "string", "description": _BULK_LOAD}},
        "application/json": {
            "schema": {"anyOf": [schema_ref(f"{event.__name__}Data") for event in OUTSIDE.values()]},
        },
    }
    operation = _signed("Send CloudEvents: structured, binary, batched, or a line each", body, answers)
    operation["responses"]["503"]["content"]["application/json"] = {"schema": results}
    operation["parameters"] += [{"$ref": f"#/components/parameters/{name}"} for name in _CLOUD_EVENT_HEADERS]
    return operation


def _signed(summary: str, body: Json, answers: Json) -> Json:
    names = ("WebhookId", "WebhookTimestamp", "PlantProducer", "Traceparent")
    wanted = [kind for kind in kinds() if kind not in _NO_ANSWER_TO_A_SIGNED_POST]
    return {
        "summary": summary,
        "tags": ["events"],
        "security": [{"standardWebhooks": []}],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names],
        "requestBody": {"required": True, "content": body},
        "responses": {**answers, **problem_responses(wanted)},
    }


def _process_paths() -> Json:
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    alive = {"description": "Yes.", "content": {"application/json": {"schema": status}}}
    this = {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}
    ready = {"200": alive, **problem_responses(("overloaded", "starting"))}
    return {
        "/livez": {"get": _watched("Whether the event loop turns", {"200": alive})},
        "/readyz": {"get": _watched("Whether webhooks can be taken", ready)},
        "/openapi.json": {"get": _watched("This document", {"200": this})},
    }


def _metrics_path() -> Json:
    text = {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"/metrics": {"get": _watched("Metrics", {"200": text})}}


def _at_admin_address(paths: Json) -> Json:
    """Return the same paths, with the address at which they are served instead of that of webhooks."""
    return {path: {"servers": [_ADMIN_SERVER], **operations} for path, operations in paths.items()}


def _watched(summary: str, responses: Json) -> Json:
    return {"summary": summary, "tags": ["process"], "responses": responses}


def _operations(paths: Json) -> Iterator[Json]:
    """Yield the operations of all paths, without what a path says of its servers."""
    for members in paths.values():
        for name, operation in members.items():
            if name != "servers":
                yield operation


def _any_problem(paths: Json) -> Json:
    """Return the same paths, with the problems that any request can meet."""
    for operation in _operations(paths):
        for status, response in problem_responses(_ANY_REQUEST).items():
            known = operation["responses"].setdefault(status, response)
            known["content"] = {**response["content"], **known["content"]}
    return paths


def _share_responses(paths: Json) -> Json:
    """Move responses that occur more than once to `components`, and put references in their stead."""
    uses: dict[bytes, list[tuple[Json, str]]] = {}
    for operation in _operations(paths):
        for status, response in operation["responses"].items():
            uses.setdefault(status.encode() + msgspec.json.encode(response), []).append(
                (operation["responses"], status)
            )
    shared: Json = {}
    for alike_uses in uses.values():
        if len(alike_uses) > 1:
            status = alike_uses[0][1]
            alike = sum(name.startswith(f"Status{status}") for name in shared)
            name = f"Status{status}" + (f"-{alike + 1}" if alike else "")
            shared[name] = alike_uses[0][0][status]
            for responses, at in alike_uses:
                responses[at] = {"$ref": f"#/components/responses/{name}"}
    return dict(sorted(shared.items()))


def _json(description: str, schema: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema_ref(schema)}}}
