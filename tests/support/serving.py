"""The application of ingress in this process, on real Kafka and Postgres: fixture `serving`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest_asyncio
from litestar import Litestar

from operations.services.ingress import Ingress, build_ingress
from runtime.settings import Settings
from streams.producer import EventProducer, Limits
from streams.record_position import RecordPosition
from streams.topics import EVENTS_TOPIC
from tests.support.own_task import in_own_task
from tests.support.waiting import wait_until_async
from tests.support.webhooks import CLOUD_EVENTS, Sender, add_key


@dataclass
class Serving:
    """Running applications, a client of each, and a producer's key."""

    ingress: Ingress
    client: httpx.AsyncClient
    admin: httpx.AsyncClient
    sender: Sender
    key_id: UUID
    settings: Settings
    topic: str

    async def post(self, path: str, body: bytes, *, message_id: str | None = None, **headers: str) -> httpx.Response:
        """A signed request."""
        kind = "application/cloudevents+json" if path == CLOUD_EVENTS else "application/json"
        signed = self.sender.headers(body, message_id=message_id, content_type=kind)
        return await self.client.post(path, content=body, headers={**signed, **headers})


def position_of(answer: httpx.Response) -> RecordPosition:
    document = answer.json()
    return RecordPosition(document["topic"], document["partition"], document["offset"])


@contextlib.asynccontextmanager
async def served(settings: Settings, topic: str, limits: Limits | None = None) -> AsyncIterator[Serving]:
    key_id, sender = await add_key(settings)
    producer = EventProducer(settings, topics=(EVENTS_TOPIC,), events_topic=topic, limits=limits)
    ingress = build_ingress(settings, producer=producer)
    async with ingress.app.lifespan(), _client_of(ingress.app) as client, _client_of(ingress.admin_app) as admin:

        async def ready() -> bool:
            return not await ingress.readiness.faults()

        await wait_until_async(ready, "ingress is ready")
        yield Serving(ingress, client, admin, sender, key_id, settings, topic)


def _client_of(app: Litestar) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress")


@pytest_asyncio.fixture
async def serving(settings: Settings, topic: str) -> AsyncIterator[Serving]:
    async with in_own_task(served(settings, topic)) as made:
        yield made
