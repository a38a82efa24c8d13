"""Read Plant's events with aiokafka and fastavro; schemas come from the registry that `plant ingress` serves.

    pip install aiokafka fastavro httpx
    python examples/consumer_aiokafka.py localhost:9092 http://127.0.0.1:8090

Prints a JSON object a line, from the beginning of the topic on, until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import sys
from typing import Any
from uuid import UUID

import fastavro
import httpx
from aiokafka import AIOKafkaConsumer

TOPIC = "genesis.events"
PREFIX = struct.Struct(">bi")
"""A byte 0, then the schema's id. Avro binary follows."""


class Schemas:
    """Schemas by id. A schema never changes, so each is requested once."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._known: dict[int, Any] = {}

    async def get(self, schema_id: int) -> Any:
        """Return the parsed schema; raise KeyError for an id that the registry does not know."""
        if schema_id not in self._known:
            answer = await self._client.get(f"/schemas/ids/{schema_id}")
            if answer.status_code == 404:
                raise KeyError(f"no schema has the id {schema_id}")
            answer.raise_for_status()
            self._known[schema_id] = fastavro.parse_schema(json.loads(answer.json()["schema"]))
        return self._known[schema_id]


async def follow(brokers: str, registry: str) -> None:
    """Print every event of the topic."""
    consumer = AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=brokers,
        group_id=None,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    async with httpx.AsyncClient(base_url=registry, timeout=10) as client, consumer:
        schemas = Schemas(client)
        async for record in consumer:
            position = f"{TOPIC}[{record.partition}]@{record.offset}"
            try:
                fields = await read(record.value, schemas)
            except (ValueError, KeyError, IndexError, EOFError, struct.error) as error:
                print(f"{position} is no event: {error!r}", file=sys.stderr)
                continue
            kind = dict(record.headers).get("ce_type", b"").decode()
            print(json.dumps({"position": position, "type": kind, **fields}, default=as_text), flush=True)


async def read(value: bytes | None, schemas: Schemas) -> dict[str, Any]:
    """Return the fields of a record's value."""
    magic, schema_id = PREFIX.unpack_from(value or b"")
    if magic != 0:
        raise ValueError("the first byte is not 0")
    body = io.BytesIO((value or b"")[PREFIX.size :])
    fields: dict[str, Any] = fastavro.schemaless_reader(body, await schemas.get(schema_id), None)
    if body.read(1):
        raise ValueError("there is more than one event")
    return fields


def as_text(value: object) -> str:
    """Return a value as text: UUIDs are 16 bytes in Avro, times are datetimes."""
    return str(UUID(bytes=value)) if isinstance(value, bytes) and len(value) == 16 else str(value)


if __name__ == "__main__":
    try:
        asyncio.run(follow(*sys.argv[1:3]))
    except KeyboardInterrupt:
        sys.exit(0)
