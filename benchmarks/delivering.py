"""What benchmarks of deliveries share: a receiver, endpoints, queued deliveries, and a deliverer's process."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import psutil

from benchmarks.stage import Stage, process
from database.connector import connect
from deliveries.delivery_id import delivery_id
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import EndpointConfiguration, EndpointId, EndpointSecrets, EndpointStart, new_endpoint_id
from deliveries.signed_request import EndpointKeys
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DELIVERIES_TOPIC, DeliveryAttempted, DeliveryQueued
from signing.master_key import MasterKeys
from streams import topics
from streams.producer import EventProducer
from streams.topics import DEAD_DELIVERIES_TOPIC, RETRY_TOPICS

SECRET = bytes(range(24))
DATA = msgspec.json.encode({"agent_id": str(uuid4()), "available": True, "available_from": None})
PARTITIONS = 4
LOCAL = {
    "PLANT_DELIVERIES_SCHEMES": "http,https",
    "PLANT_DELIVERIES_PORTS": "1-65535",
    "PLANT_DELIVERIES_ALLOWED_NAMES": "receiver.test",
    "PLANT_DELIVERIES_ALLOWED_NETWORKS": "127.0.0.1",
    "PLANT_DELIVERIES_CONNECTIONS_MAX": "4096",
    "PLANT_DELIVERIES_CONNECTIONS_PER_HOST": "4096",
    "PLANT_TOPIC_PARTITIONS": str(PARTITIONS),
}
PUBLISHED_TOGETHER = 10_000
MATCHES = 10
"""Endpoints that ask for an event."""


@dataclass(frozen=True)
class Receiver:
    """A receiver's process."""

    port: int

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def take_received(self) -> dict[str, float]:
        """Return when each webhook-id was accepted since the last time, by the monotonic clock."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("GET", "/received")
            return msgspec.json.decode(connection.getresponse().read(), type=dict[str, float])
        finally:
            connection.close()


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.webhook_receiver"], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        try:
            yield Receiver(int(running.stdout.readline()))
        finally:
            running.terminate()


def new_generation() -> str:
    """Return what the names of topics end with that nobody has used yet."""
    return f"-{secrets.token_hex(4)}"


async def make_topics(stage: Stage, generation: str) -> None:
    """Make the topics of deliveries under names of their own."""
    names = (DELIVERIES_TOPIC, *RETRY_TOPICS, DEAD_DELIVERIES_TOPIC, ATTEMPTS_TOPIC)
    catalogue = [
        msgspec.structs.replace(topic, name=topic.name + generation)
        for topic in topics.CATALOGUE
        if topic.name in names
    ]
    await topics.apply(stage.settings, catalogue=catalogue)


async def add_endpoints(
    stage: Stage, urls: Sequence[str], filters: Sequence[dict[str, object]] = ()
) -> list[EndpointId]:
    """Store an endpoint for each URL, with its filter; their ids ascend."""
    settings = stage.settings
    database = connect(settings, "operator")
    store = EndpointStore(database, MasterKeys(settings))
    keys = EndpointSecrets(EndpointKeys(secrets=(SECRET,)))
    endpoint_ids = sorted(new_endpoint_id() for _ in urls)
    for endpoint_id, url, filter_ in zip(endpoint_ids, urls, filters or [{}] * len(urls), strict=True):
        configuration = EndpointConfiguration(url=url, event_types=("*",), filter=filter_)
        await store.add(endpoint_id, configuration, keys, EndpointStart((0,)), tenant="genesis")
    await database.close()
    return endpoint_ids


def queued_deliveries(endpoint_ids: Sequence[EndpointId], start: int, stop: int) -> Iterator[DeliveryQueued]:
    """Yield deliveries to endpoints by turns, as a dispatcher orders them; `start` and `stop` count all of them.

    Each event goes to MATCHES endpoints, or to all where they are fewer.
    """
    matches = min(MATCHES, len(endpoint_ids))
    for number in range(start, stop):
        if number == start or number % matches == 0:
            event_id, entity_id = uuid4(), uuid4()
        endpoint_id = endpoint_ids[number % len(endpoint_ids)]
        yield DeliveryQueued(
            event_id=event_id, delivery_id=webhook_id(event_id, endpoint_id),
            endpoint_id=endpoint_id, type="genesis.agent.available", source="bench", occurred_at=datetime.now(UTC),
            entity_id=entity_id, data=DATA, stream="live", source_partition=0,
            source_offset=number // matches, source_rank=0, attempt=1, hop=0, token=1,
        )  # fmt: skip


def webhook_id(event_id: UUID, endpoint_id: UUID) -> UUID:
    """Return the id of an event's delivery, which its requests have."""
    return UUID(bytes=delivery_id(event_id.bytes, endpoint_id.bytes))


def delays_ms(sent: Mapping[UUID, float], received: Mapping[str, float], endpoint_id: UUID) -> list[float]:
    """Return how long events took to an endpoint, ascending; `sent` is by the event's id, in monotonic seconds."""
    return sorted((received[str(webhook_id(event_id, endpoint_id))] - at) * 1000 for event_id, at in sent.items())


async def publish_records(stage: Stage, topic: str, records: Iterable[DeliveryQueued | DeliveryAttempted]) -> None:
    """Put records of deliveries on a topic, in order, some thousand at a time."""
    async with EventProducer(stage.settings, topics=(topic,)) as producer:
        publishes = []
        for each in records:
            publishes.append(
                producer.submit_record(topic, str(each.endpoint_id).encode(), codec.encode_checked(each), [])
            )
            if len(publishes) == PUBLISHED_TOGETHER:
                await producer.await_each(publishes)
                publishes = []
        await producer.await_each(publishes)


@contextlib.contextmanager
def deliverer(stage: Stage, generation: str) -> Iterator[psutil.Process]:
    """Run a deliverer in a process of its own."""
    with process(stage, "-m", "benchmarks.deliverer_process", generation) as running:
        yield running


def wait_until_received(
    receiver: Receiver, expected: int, timeout_seconds: float, before: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return when each delivery was accepted, with those of before, once there are as many as expected.

    Raises TimeoutError.
    """
    received = dict(before or {})
    deadline = time.monotonic() + timeout_seconds
    while len(received) < expected:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(received)} of {expected} deliveries were accepted")
        time.sleep(0.5)
        for message_id, at in receiver.take_received().items():
            received.setdefault(message_id, at)
    return received
