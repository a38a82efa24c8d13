"""The AsyncAPI 3.0 document of Plant's topics and messages, made from the topic catalogue, the event structs and the
registry. Committed as docs/reference/asyncapi.json.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import msgspec

from schemas.clock_fields import CLOCK_FIELDS, CLOCK_FIELDS_HEADER
from schemas.delivery_records import DELIVERY_TYPES
from schemas.endpoint_events import ENDPOINT_EVENT_TYPES
from schemas.events import EVENT_TYPES, Event, RecordValue
from schemas.examples import delivery_examples, endpoint_examples, examples
from schemas.generation import full_name, schema_of
from schemas.registry import bundled, subject
from schemas.sender_headers import (
    KEY_HEADER,
    MESSAGE_ID_HEADER,
    OPERATION_HEADER,
    PRODUCER_HEADER,
    TENANT_HEADER,
    VERSION_HEADER,
)
from streams.topics import CATALOGUE, RETENTION_FOREVER, Topic, logical_topic

AsyncApiPart = dict[str, Any]

AVRO: Final = "application/vnd.apache.avro+json;version=1.9.0"
_DESCRIPTION: Final = """\
Events on Kafka. A value is Avro in the Confluent wire format: `0x00`, the schema id as a big-endian int32, Avro binary;
`plant ingress` answers for the ids as a read-only schema registry. A key is the entity's id as 36 characters. Headers
are CloudEvents 1.0 in binary mode. Read with `isolation.level=read_committed`. One key's records keep their order. The
same `event_id` is the same event.
"""


def asyncapi_text() -> str:
    """Return the document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(asyncapi_document()), indent=2).decode() + "\n"


def asyncapi_document() -> AsyncApiPart:
    """Return the document as data."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Plant's topics", "version": "1", "description": _DESCRIPTION},
        "defaultContentType": "application/vnd.confluent.avro",
        "channels": {topic.name: _channel(topic) for topic in CATALOGUE},
        "operations": {name: operation for topic in CATALOGUE for name, operation in _operations(topic).items()},
        "components": {
            "messages": {
                **{event.__name__: _event_message(event) for event in _events()},
                **{record.__name__: _delivery_message(record) for record in DELIVERY_TYPES.values()},
            },
            "messageTraits": {"cloudEvent": _headers()},
            "schemas": _limits(),
        },
    }


def _channel(topic: Topic) -> AsyncApiPart:
    kept = "permanently" if topic.retention_ms == RETENTION_FOREVER else f"{topic.retention_ms // 1000} s"
    kafka: AsyncApiPart = {"topic": topic.name, "bindingVersion": "0.5.0"}
    if topic.partitions is not None:
        kafka["partitions"] = topic.partitions
    kafka["topicConfiguration"] = {"cleanup.policy": ["delete"], "retention.ms": topic.retention_ms}
    return {
        "address": topic.name,
        "description": f"{topic.about} Keyed by {topic.key}; kept {kept}.",
        "messages": {
            event.__name__: {"$ref": f"#/components/messages/{event.__name__}"} for event in _carried(topic.name)
        },
        "bindings": {"kafka": kafka},
    }


def _operations(topic: Topic) -> AsyncApiPart:
    """Return Plant's side of a topic: it sends, and consumers receive."""
    name = "send_" + topic.name.replace(".", "_")
    escaped = topic.name.replace("~", "~0").replace("/", "~1")
    return {
        name: {
            "action": "send",
            "channel": {"$ref": f"#/channels/{escaped}"},
            "summary": f"Plant publishes to {topic.name}; consumers read there.",
            "messages": [{"$ref": f"#/channels/{escaped}/messages/{event.__name__}"} for event in _carried(topic.name)],
        }
    }


def _carried(topic: str) -> list[type[RecordValue]]:
    types: list[type[RecordValue]] = [*_events(), *DELIVERY_TYPES.values()]
    return [record for record in types if record.topic == logical_topic(topic)]


def _events() -> list[type[Event]]:
    return [*EVENT_TYPES.values(), *ENDPOINT_EVENT_TYPES.values()]


def _event_message(event: type[Event]) -> AsyncApiPart:
    traits = [{"$ref": "#/components/messageTraits/cloudEvent"}]
    example = {**examples(), **endpoint_examples()}[event.event_type]
    return {**_message(event, event.entity_field, example), "traits": traits}


def _delivery_message(record: type[RecordValue]) -> AsyncApiPart:
    return _message(record, "endpoint_id", delivery_examples()[record.event_type])


def _message(event: type[RecordValue], key_field: str, example: RecordValue) -> AsyncApiPart:
    return {
        "name": event.event_type,
        "title": event.__name__,
        "summary": inspect.cleandoc(event.__doc__ or ""),
        "contentType": "application/vnd.confluent.avro",
        "payload": {"schemaFormat": AVRO, "schema": schema_of(event)},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "format": "uuid", "description": f"`{key_field}`."},
                "schemaIdLocation": "payload",
                "schemaIdPayloadEncoding": "confluent",
                "schemaLookupStrategy": "TopicRecordNameStrategy",
                "bindingVersion": "0.5.0",
            }
        },
        "examples": [{"name": "decoded", "summary": "The fields, as JSON.", "payload": msgspec.to_builtins(example)}],
        "x-subject": subject(event),
        "x-schema-id": bundled().current(event).id,
        "x-record": full_name(event),
        "x-limits": {"$ref": f"#/components/schemas/{event.__name__}"},
    }


def _headers() -> AsyncApiPart:
    text = {"type": "string", "minLength": 1}
    properties = {
        "ce_specversion": {"const": "1.0"},
        "ce_id": {"type": "string", "format": "uuid", "description": "The event's id."},
        "ce_type": {"enum": [event.event_type for event in _events()]},
        "ce_source": text,
        "ce_time": {"type": "string", "format": "date-time"},
        "traceparent": text,
        CLOCK_FIELDS_HEADER: {
            "const": CLOCK_FIELDS.decode(),
            "description": "The sender gave no time, so Plant's clock did; a repeat may have another one.",
        },
        PRODUCER_HEADER: {**text, "description": "The verified producer, or the part of Plant that published."},
        KEY_HEADER: {**text, "description": "The id of the key that signed; absent where Plant itself published."},
        MESSAGE_ID_HEADER: {**text, "description": "The sender's own id of the message."},
        OPERATION_HEADER: {
            "type": "string",
            "format": "uuid",
            "description": "The operator's action that published the event; absent where no operator did.",
        },
        TENANT_HEADER: {**text, "description": "The entity's tenant, of a change that was made in the database."},
        VERSION_HEADER: {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "The entity's version that such a change made.",
        },
    }
    required = [name for name in properties if name.startswith("ce_")]
    return {"headers": {"type": "object", "properties": properties, "required": required}}


def _limits() -> AsyncApiPart:
    """Return each record's fields and their limits as JSON Schema."""
    types = [*_events(), *DELIVERY_TYPES.values()]
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return dict(sorted(components.items()))
