"""The read-only schema registry of ingress: what a stock Confluent client reads, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from schemas.codec import decode
from schemas.events import EVENT_TYPES
from schemas.examples import examples
from schemas.registry import bundled
from streams.topics import EVENTS_TOPIC as TOPIC
from tests.support.ingress_process import Running
from tests.support.stock_consumer import read_record
from tests.support.webhooks import rated

SUBJECT = "genesis.events-genesis.AgentRated"
OURS = next(version for version in bundled().versions if version.subject == SUBJECT)


async def test_a_stock_deserializer_decodes_our_topic(running: Running) -> None:
    """confluent-kafka reads a webhook's record with nothing but the admin address of ingress as its registry."""
    agent_id = uuid4()
    answer = await running.post(rated(agent_id, rating=5))
    assert answer.status_code == 200

    def decoded() -> Any:
        value = read_record(running.settings, answer.json())
        with SchemaRegistryClient({"url": running.admin_url}) as client:
            return AvroDeserializer(client)(value, SerializationContext(TOPIC, MessageField.VALUE))

    found = await asyncio.to_thread(decoded)
    assert (UUID(bytes=found["agent_id"]), found["rating"]) == (agent_id, 5)
    assert str(UUID(bytes=found["event_id"])) == answer.json()["event_id"]


async def test_stock_clients_find_what_they_ask_for(running: Running) -> None:
    """A stock serializer writes every event as we read it; the client sees subjects, versions, ids, level and mode."""

    def round_trips() -> None:
        with SchemaRegistryClient({"url": running.admin_url}) as client:
            for event_type, event in examples().items():
                known = bundled().current(EVENT_TYPES[event_type])
                strategy = {"auto.register.schemas": True, "subject.name.strategy": topic_record_subject_name_strategy}
                serialize = AvroSerializer(client, json.dumps(known.schema), lambda given, _: given, strategy)
                fields = in_avro(event)
                value = serialize(fields, SerializationContext(event.topic, MessageField.VALUE))
                assert decode(value, event.topic) == event

    await asyncio.to_thread(round_trips)
    await asyncio.to_thread(see_the_catalogue, running.admin_url)


def in_avro(value: Any) -> Any:
    """A struct as fastavro takes it: UUIDs as bytes."""
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, tuple):
        return [in_avro(item) for item in value]
    if hasattr(value, "__struct_fields__"):
        return {name: in_avro(getattr(value, name)) for name in value.__struct_fields__}
    return value


def see_the_catalogue(url: str) -> None:
    """What the stock client asks besides a schema by its id, and what it may not do."""
    with SchemaRegistryClient({"url": url}) as client:
        assert client.get_subjects() == sorted({version.subject for version in bundled().versions})
        assert client.get_versions(SUBJECT) == [1]
        latest = client.get_latest_version(SUBJECT)
        assert (latest.schema_id, latest.version) == (OURS.id, OURS.version)
        same = Schema(json.dumps({**OURS.schema, "doc": "Other words."}), "AVRO")
        assert client.lookup_schema(SUBJECT, same).schema_id == OURS.id
        assert client.get_compatibility(SUBJECT) == "FULL_TRANSITIVE"
        assert client.get_mode(SUBJECT) == "READONLY"
        assert client.get_schema_versions(OURS.id)[0].subject == SUBJECT
        with pytest.raises(SchemaRegistryError, match="read-only") as refused:
            client.register_schema(SUBJECT, Schema('{"type": "fixed", "name": "genesis.Other", "size": 4}', "AVRO"))
        assert refused.value.error_code == 42205
        with pytest.raises(SchemaRegistryError, match="read-only"):
            client.delete_subject(SUBJECT)
        with pytest.raises(SchemaRegistryError, match="read-only"):
            client.set_compatibility(SUBJECT, "NONE")
