"""The OpenAPI and AsyncAPI documents: valid, whole, and true of the code that reads requests and writes records."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import fastavro
import jsonschema_rs
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from ingress.contracts.openapi import openapi_document as openapi_document
from ingress.payloads import read_cloud_event, read_webhook
from ingress.routes import WEBHOOK_ROUTES
from operations.reference.asyncapi import asyncapi_document as asyncapi_document
from operations.reference.events import events_page
from schemas import codec
from schemas.clock_fields import CLOCK_FIELDS_HEADER
from schemas.delivery_records import DELIVERY_TYPES
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES
from schemas.events import EVENT_TYPES
from schemas.examples import endpoint_examples, examples, webhook_body
from schemas.registry import bundled
from schemas.sender_headers import (
    KEY_HEADER,
    MESSAGE_ID_HEADER,
    OPERATION_HEADER,
    PRODUCER_HEADER,
    TENANT_HEADER,
    VERSION_HEADER,
    change_headers,
    sender_headers,
)
from server.problems import Problem, kinds
from streams.topics import CATALOGUE, logical_topic

OPENAPI = openapi_document(WEBHOOK_ROUTES)
ASYNCAPI = asyncapi_document()
OUTSIDE = [name for name in EVENT_TYPES if name.startswith("genesis.")]
WEBHOOKS = {path: event_type for path, event_type in WEBHOOK_ROUTES.items() if event_type is not None}


def schema(name: str) -> jsonschema_rs.Validator:
    """A schema of the OpenAPI document, with what it refers to; formats count."""
    whole = {"$ref": f"#/components/schemas/{name}", "components": OPENAPI["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def references(node: object) -> Iterator[str]:
    """Every `$ref` below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def target(document: dict[str, Any], reference: str) -> object:
    """What a reference points to; KeyError where that is not there."""
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def cloud_event(event_type: str) -> dict[str, Any]:
    """The example of an event type as a structured CloudEvent."""
    payload = json.loads(webhook_body(examples()[event_type]))
    return {
        "specversion": "1.0",
        "id": "1",
        "source": "/tests",
        "type": event_type,
        "time": payload["timestamp"],
        "data": payload["data"],
    }


def test_openapi_fits_the_official_schema() -> None:
    """The document is OpenAPI 3.1 by its own meta-schema, which does notice a fault."""
    official = jsonschema_rs.validator_for(OPENAPI_31)
    assert [str(error) for error in official.iter_errors(OPENAPI)] == []
    broken = copy.deepcopy(OPENAPI)
    broken["components"]["responses"]["Status401"].pop("description")
    assert not official.is_valid(broken)


@pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """No `$ref` of either document dangles."""
    found = set(references(document))
    assert found
    for reference in found:
        assert target(document, reference) is not None


def test_every_problem_is_described() -> None:
    """Each kind of problem is in the document, and a real one fits its schema."""
    text = json.dumps(OPENAPI["paths"]) + json.dumps(OPENAPI["components"]["responses"])
    assert [kind for kind in kinds() if f"urn:plant:problem:{kind}" not in text] == ["not-found", "method"]
    for kind in kinds():
        assert schema("Problem").is_valid(json.loads(Problem(kind, "Because.").body()))


@pytest.mark.parametrize(("path", "event_type"), WEBHOOKS.items())
def test_webhook_bodies_are_those_that_are_read(path: str, event_type: str) -> None:
    """The example is valid by the document and is read; without a required field neither holds."""
    name = EVENT_TYPES[event_type].__name__
    content = OPENAPI["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": f"#/components/schemas/{name}Webhook"}
    payload = json.loads(webhook_body(examples()[event_type]))
    assert schema(f"{name}Webhook").is_valid(payload)
    read_webhook(json.dumps(payload).encode(), event_type, "tests", "1", "/tests")
    more = {"more": 1}, {"event_id": str(examples()[event_type].event_id)}, {"occurred_at": payload["timestamp"]}
    unknown = [{**payload, "data": {**payload["data"], **extra}} for extra in more]
    for wrong in ({**payload, "timestamp": None}, {}, *unknown):
        assert not schema(f"{name}Webhook").is_valid(wrong)
        with pytest.raises(Problem):
            read_webhook(json.dumps(wrong).encode(), event_type, "tests", "1", "/tests")


@pytest.mark.parametrize("event_type", OUTSIDE)
def test_cloud_events_are_those_that_are_read(event_type: str) -> None:
    """Each type is valid as a CloudEvent and in a batch, and is read; with another's data neither holds."""
    event = cloud_event(event_type)
    assert schema("CloudEvent").is_valid(event)
    assert schema("CloudEventBatch").is_valid([event] * 1000)
    assert not schema("CloudEventBatch").is_valid([event] * 1001)
    read_cloud_event(json.dumps(event).encode(), "tests")
    wrong = {**event, "data": {"agent_id": "none"}}
    assert not schema("CloudEvent").is_valid(wrong)
    with pytest.raises(Problem):
        read_cloud_event(json.dumps(wrong).encode(), "tests")


def test_asyncapi_knows_every_topic_and_event() -> None:
    """Each topic of the catalogue is a channel that carries its events, with the ids that are on the wire."""
    assert set(ASYNCAPI["channels"]) == {topic.name for topic in CATALOGUE}
    messages = ASYNCAPI["components"]["messages"]
    types = {**EVENT_TYPES, **DELIVERY_TYPES, **ENDPOINT_EVENT_TYPES}
    for topic in CATALOGUE:
        carried = {record.__name__ for record in types.values() if record.topic == logical_topic(topic.name)}
        assert set(ASYNCAPI["channels"][topic.name]["messages"]) == carried
    for event_type, event in types.items():
        message = messages[event.__name__]
        assert (message["name"], message["x-schema-id"]) == (event_type, bundled().current(event).id)


@pytest.mark.parametrize("event_type", [*EVENT_TYPES, *ENDPOINT_EVENT_TYPES])
def test_asyncapi_describes_the_records(event_type: str) -> None:
    """A record decodes by the message's Avro schema, its headers fit, and its fields fit the JSON Schema."""
    event = {**examples(), **endpoint_examples()}[event_type]
    message = ASYNCAPI["components"]["messages"][type(event).__name__]
    parsed = fastavro.parse_schema(message["payload"]["schema"])
    value = codec.encode(event)
    fields = fastavro.schemaless_reader(BytesIO(value[codec.WIRE_PREFIX.size :]), parsed, None)
    assert fields["event_id"] == event.event_id.bytes
    sender = (*sender_headers("genesis", "msg_1", key_id="a key"), *change_headers("genesis", 7))
    headers = {name: held.decode() for name, held in codec.headers(event, "/tests", sender=sender)}
    described = ASYNCAPI["components"]["messageTraits"]["cloudEvent"]["headers"]
    assert jsonschema_rs.Draft202012Validator(described, validate_formats=True).is_valid(headers)
    limits = {"$ref": message["x-limits"]["$ref"], "components": ASYNCAPI["components"]}
    plain = msgspec.to_builtins(event)
    validator = jsonschema_rs.Draft202012Validator(limits, validate_formats=True)
    assert validator.is_valid(plain)
    assert not validator.is_valid({**plain, "event_id": "none"})


def test_every_header_of_plants_own_is_described() -> None:
    """Each one that a record may carry stands in the AsyncAPI document and on the page of events."""
    names = {PRODUCER_HEADER, KEY_HEADER, MESSAGE_ID_HEADER, OPERATION_HEADER, CLOCK_FIELDS_HEADER}
    names |= {TENANT_HEADER, VERSION_HEADER}
    described = ASYNCAPI["components"]["messageTraits"]["cloudEvent"]["headers"]["properties"]
    assert {name for name in described if name.startswith("plant_")} == names
    assert [name for name in names if f"`{name}" not in events_page()] == []
