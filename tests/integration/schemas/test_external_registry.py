"""A real Apicurio Registry instead of the bundled ids: an empty one, and one that others use already."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from runtime.settings import Settings
from schemas import codec
from schemas.errors import SchemaCheckFailed
from schemas.events import AgentOnboarded, AgentRated
from schemas.external_registry import activate_registry, plan_registration, read_ids, register_missing
from schemas.registry import bundled
from streams.topics import EVENTS_TOPIC
from tests.support.apicurio import apicurio
from tests.support.ingress_process import PLANT, environ, started
from tests.support.stock_consumer import read_record
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import rated

if TYPE_CHECKING:
    from tests.conftest import Database, SettingsFor

ONBOARDED, RATED = bundled().current(AgentOnboarded), bundled().current(AgentRated)
JSON = {"content-type": "application/vnd.schemaregistry.v1+json"}


@pytest.fixture(autouse=True)
def _bundled_again() -> Iterator[None]:
    """Each test leaves this process with the bundled ids."""
    yield
    codec.activate(None)


async def test_an_empty_registry_gets_the_bundled_ids(
    database: Database, settings_for: SettingsFor, tmp_path: Path
) -> None:
    """Ingress registers every schema at its start, the ids are the bundled ones, and stock clients decode by them."""
    with apicurio(tmp_path) as url:
        settings = settings_for(database, schema_registry_url=url)
        agent_id, stored = await published(settings, tmp_path)
        assert plan_registration(url) == [(version, version.id) for version in bundled().versions]
        value = await asyncio.to_thread(read_record, settings, stored)
        assert codec.WIRE_PREFIX.unpack_from(value) == (0, RATED.id)
        assert await asyncio.to_thread(decoded, url, value) == agent_id
        register_missing(url, None)  # nothing to add, so no file is needed
    code, stderr = await refused(settings, tmp_path)
    assert (code, "does not answer" in stderr) == (4, True), stderr


async def test_a_registry_in_use_gives_ids_of_its_own(
    database: Database, settings_for: SettingsFor, tmp_path: Path
) -> None:
    """Clashing ids, refused schemas and ids that are in no file stop a process; with the file its ids are written."""
    file = tmp_path / "ids.json"
    with apicurio(tmp_path) as url, httpx.Client(base_url=url, headers=JSON) as client:
        fill(client, "early", 3)
        with pytest.raises(SchemaCheckFailed) as clash:
            register_missing(url, file)
        assert "one of Plant's own ids" in clash.value.why
        assert [found for _, found in plan_registration(url)] == [4] + [None] * (len(bundled().versions) - 1)

        fill(client, "later", 100)
        add(client, ONBOARDED.subject, {**ONBOARDED.schema, "doc": "Once more, for an id that can be used."})
        add(client, RATED.subject, {"type": "record", "name": "AgentRated", "namespace": "genesis", "fields": []})
        client.put(f"/config/{RATED.subject}", json={"compatibility": "FULL_TRANSITIVE"}).raise_for_status()
        with pytest.raises(SchemaCheckFailed, match=f"refuses {RATED.subject}"):
            register_missing(url, file)
        assert not file.exists()

        client.put(f"/config/{RATED.subject}", json={"compatibility": "NONE"}).raise_for_status()
        settings = settings_for(database, schema_registry_url=url)
        code, stderr = await refused(settings, tmp_path)
        assert (code, "plant schemas register --execute" in stderr) == (3, True), stderr

        assert {line.own_id for line in register_missing(url, file)} == {version.id for version in bundled().versions}
        assert register_missing(url, file) == []
        settings = settings_for(database, schema_registry_url=url, schema_ids_file=str(file))
        agent_id, stored = await published(settings, tmp_path, also_serves=True)
        value = await asyncio.to_thread(read_record, settings, stored)
        external_id = next(line.id for line in read_ids(file) if line.own_id == RATED.id)
        assert codec.WIRE_PREFIX.unpack_from(value) == (0, external_id)
        assert await asyncio.to_thread(decoded, url, value) == agent_id
    activate_registry(settings_for(database, schema_ids_file=str(file)))
    event = codec.decode(value, EVENTS_TOPIC)
    assert isinstance(event, AgentRated)
    assert event.agent_id == agent_id


async def published(settings: Settings, folder: Path, also_serves: bool = False) -> tuple[UUID, dict[str, Any]]:
    """Send a rating through a `plant ingress` process; the agent's id and the record's position."""
    agent_id = uuid4()
    async with started(settings, folder) as running:
        answer = await running.post(rated(agent_id))
        assert answer.status_code == 200, answer.text
        if also_serves:
            value = await asyncio.to_thread(read_record, settings, answer.json())
            assert await asyncio.to_thread(decoded, running.admin_url, value) == agent_id
    return agent_id, answer.json()


def decoded(url: str, value: bytes) -> UUID:
    """The agent's id in a rating, by a stock deserializer with this registry."""
    with SchemaRegistryClient({"url": url}) as client:
        fields: Any = AvroDeserializer(client)(value, SerializationContext(EVENTS_TOPIC, MessageField.VALUE))
    return UUID(bytes=fields["agent_id"])


async def refused(settings: Settings, folder: Path) -> tuple[int | None, str]:
    """How `plant ingress` ends that may not start: its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        PLANT, "ingress", "--port", "0", "--ready-file", str(folder / "unready.json"),
        env=environ(settings), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    return process.returncode, stderr.decode()


def fill(client: httpx.Client, name: str, count: int) -> None:
    """Register other people's schemas."""
    for number in range(count):
        add(client, f"{name}-{number}", {"type": "fixed", "name": f"{name}{number}", "size": 4})


def add(client: httpx.Client, subject: str, schema: dict[str, object]) -> None:
    """Register a schema."""
    client.post(f"/subjects/{subject}/versions", json={"schema": json.dumps(schema)}).raise_for_status()
