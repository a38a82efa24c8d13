"""Read Plant's events with stock confluent-kafka; `plant ingress` is the schema registry.

    pip install 'confluent-kafka[avro]'
    python examples/consumer_confluent.py localhost:9092 http://127.0.0.1:8090

Prints a JSON object a line, from the beginning of the topic on, until Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from uuid import UUID

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError

TOPIC = "genesis.events"


def follow(brokers: str, registry: str) -> None:
    """Print every event of the topic."""
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry}))
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "example-confluent",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([TOPIC])
    try:
        while True:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error() is not None:
                print(message.error(), file=sys.stderr)
                continue
            position = f"{TOPIC}[{message.partition()}]@{message.offset()}"
            try:
                fields = deserialize(message.value(), SerializationContext(TOPIC, MessageField.VALUE))
            except (SerializationError, ValueError, EOFError) as error:
                print(f"{position} is no event: {error}", file=sys.stderr)
                continue
            kind = dict(message.headers() or []).get("ce_type", b"").decode()
            print(json.dumps({"position": position, "type": kind, **fields}, default=as_text), flush=True)
    finally:
        consumer.close()


def as_text(value: object) -> str:
    """Return a value as text: UUIDs are 16 bytes in Avro, times are datetimes."""
    return str(UUID(bytes=value)) if isinstance(value, bytes) and len(value) == 16 else str(value)


if __name__ == "__main__":
    try:
        follow(*sys.argv[1:3])
    except KeyboardInterrupt:
        sys.exit(0)
