"""Deliveries: a deliverer that works off a full topic, next to a bare client that signs and sends the same."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import aiohttp
import msgspec
import uvloop

from benchmarks.stage import Stage, clean_database, tree_cpu_seconds
from database.connector import connect
from deliveries.delivery_id import delivery_id
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import EndpointConfiguration, EndpointId, EndpointSecrets, EndpointStart, new_endpoint_id
from deliveries.signed_request import EndpointKeys, OutgoingEvent, sign_attempt
from devstack.stack import Stack
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC, DeliveryQueued
from signing.master_key import MasterKeys
from streams import topics
from streams.producer import EventProducer
from streams.topics import DEAD_DELIVERIES_TOPIC, RETRY_TOPICS

DELIVERIES = 40_000
CLIENT_SENDS = 20_000
CONCURRENCY = 64
ENDPOINTS = 200
POLL_SECONDS = 0.1
TIMEOUT_SECONDS = 300.0
SECRET = bytes(range(24))
DATA = msgspec.json.encode({"agent_id": str(uuid4()), "available": True, "available_from": None})
LOCAL = {
    "PLANT_DELIVERIES_SCHEMES": "http,https",
    "PLANT_DELIVERIES_PORTS": "1-65535",
    "PLANT_DELIVERIES_ALLOWED_NAMES": "receiver.test",
    "PLANT_DELIVERIES_ALLOWED_NETWORKS": "127.0.0.1",
    "PLANT_DELIVERIES_CONNECTIONS_PER_HOST": "512",
    "PLANT_TOPIC_PARTITIONS": "4",
}
DONE = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM delivery_checkpoints WHERE topic = 'genesis.deliveries'"


@dataclass(frozen=True)
class Shape:
    """How many endpoints there are, and what share of them fails, or hangs."""

    name: str
    endpoints: int
    failing: float = 0.0
    hanging: float = 0.0


SHAPES = (
    Shape("200 endpoints, all good", ENDPOINTS),
    Shape("a tenth of the endpoints fails", ENDPOINTS, failing=0.1),
    Shape("a tenth hangs and a tenth fails", ENDPOINTS, failing=0.1, hanging=0.1),
    Shape("one endpoint takes everything", 1),
)


def run(stack: Stack) -> list[dict[str, object]]:
    """The bare client, then each shape, on topics and a database of its own."""
    with receiver() as port:
        bare = uvloop.run(_send_bare(port))
        rows: list[dict[str, object]] = [{"name": "bare client that signs", "deliveries_per_second": round(bare)}]
        for shape in SHAPES:
            rows.append(_measure(stack, shape, port, bare))
    return rows


@contextlib.contextmanager
def receiver() -> Iterator[int]:
    """Run the receiver in a process of its own; yield its port."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.webhook_receiver"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def _send_bare(port: int) -> float:
    """Return the requests a second of aiohttp alone that signs, over as many connections as there are turns."""
    left = iter(range(CLIENT_SENDS))
    keys = EndpointKeys(secrets=(SECRET,))
    event = OutgoingEvent(
        id=str(uuid4()), type="genesis.agent.available", source="bench", occurred_at=datetime.now(UTC), data=DATA
    )

    async def turn(session: aiohttp.ClientSession) -> None:
        for _ in left:
            request = sign_attempt(event, "standard", keys, delivery_id=str(uuid4()), now=datetime.now(UTC))
            async with session.post(
                f"http://127.0.0.1:{port}/", data=request.body, headers=request.headers
            ) as response:
                await response.read()

    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:
        await asyncio.gather(*(turn(session) for _ in range(CONCURRENCY)))
    return CLIENT_SENDS / (time.perf_counter() - started)


def _measure(stack: Stack, shape: Shape, port: int, bare: float) -> dict[str, object]:
    generation = f"-{secrets.token_hex(4)}"
    with clean_database(stack, **LOCAL) as stage:
        asyncio.run(_make_topics(stage, generation))
        asyncio.run(_fill(stage, shape, port, generation))
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.deliverer_process", generation], env=dict(stage.environ)
        ) as process:
            try:
                seconds, done, cores = _work_off(stage, process, generation)
            finally:
                process.terminate()
    rate = done / seconds
    return {
        "name": shape.name,
        "deliveries_per_second": round(rate),
        "percent_of_bare": round(100 * rate / bare),
        "seconds": round(seconds, 2),
        "cores_used": cores,
    }


def _work_off(stage: Stage, process: subprocess.Popen[bytes], generation: str) -> tuple[float, int, dict[str, float]]:
    """Wait until all is done; return the seconds and the deliveries since the first ones were, and processor time."""
    statement = DONE.replace("'genesis.deliveries'", f"'{DELIVERIES_TOPIC}{generation}'")

    def done() -> int:
        ((count,),) = stage.query(statement)
        assert isinstance(count, int)
        return count

    deadline = time.monotonic() + TIMEOUT_SECONDS
    first = 0
    while not first and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        first = done()
    started = time.perf_counter()
    before = stage.cpu_seconds() | {"deliverer": tree_cpu_seconds(process.pid)}
    while (last := done()) < DELIVERIES and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    after = stage.cpu_seconds() | {"deliverer": tree_cpu_seconds(process.pid)}
    return seconds, last - first, {part: round((spent - before[part]) / seconds, 2) for part, spent in after.items()}


async def _make_topics(stage: Stage, generation: str) -> None:
    names = (DELIVERIES_TOPIC, *RETRY_TOPICS, DEAD_DELIVERIES_TOPIC, ATTEMPTS_TOPIC)
    catalogue = [
        msgspec.structs.replace(topic, name=topic.name + generation)
        for topic in topics.CATALOGUE
        if topic.name in names
    ]
    await topics.apply(stage.settings, catalogue=catalogue)


async def _fill(stage: Stage, shape: Shape, port: int, generation: str) -> None:
    """Store the endpoints, and queue deliveries to them by turns, as a dispatcher orders them."""
    settings = stage.settings
    database = connect(settings, "operator")
    store = EndpointStore(database, MasterKeys(settings))
    endpoint_ids = sorted(new_endpoint_id() for _ in range(shape.endpoints))
    for index, endpoint_id in enumerate(endpoint_ids):
        share = index / shape.endpoints
        path = "failing" if share < shape.failing else "hanging" if share < shape.failing + shape.hanging else "good"
        configuration = EndpointConfiguration(url=f"http://127.0.0.1:{port}/{path}", event_types=("*",))
        keys = EndpointSecrets(EndpointKeys(secrets=(SECRET,)))
        await store.add(endpoint_id, configuration, keys, EndpointStart((0,)), tenant="genesis")
    await database.close()
    topic = DELIVERIES_TOPIC + generation
    async with EventProducer(settings, topics=(topic,)) as producer:
        for start in range(0, DELIVERIES, 10_000):
            publishes = [
                producer.submit_record(topic, str(endpoint_id).encode(), value, [])
                for endpoint_id, value in _records(endpoint_ids, start, min(start + 10_000, DELIVERIES))
            ]
            await producer.await_each(publishes)


def _records(endpoint_ids: list[EndpointId], start: int, stop: int) -> Iterator[tuple[EndpointId, bytes]]:
    for number in range(start, stop):
        endpoint_id, event_id = endpoint_ids[number % len(endpoint_ids)], uuid4()
        record = DeliveryQueued(
            event_id=event_id, delivery_id=UUID(bytes=delivery_id(event_id.bytes, endpoint_id.bytes)),
            endpoint_id=endpoint_id, type="genesis.agent.available", source="bench", occurred_at=datetime.now(UTC),
            entity_id=uuid4(), data=DATA, stream="live", source_partition=0,
            source_offset=number // len(endpoint_ids), source_rank=0, attempt=1, hop=0, token=1,
        )  # fmt: skip
        yield endpoint_id, codec.encode_checked(record)
