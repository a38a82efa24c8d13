"""Signed webhooks for tests, and reading back what became of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import aclosing
from uuid import UUID, uuid4

from database.connector import connect
from ingress.keys import KeyStore, new_key_id
from runtime.settings import Settings
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.signatures import sign
from streams.consume import Received, consume
from streams.record_position import RecordPosition

RATED = "/webhook/genesis/agent-rated"
AVAILABLE = "/webhook/genesis/agent-available"
CLOUD_EVENTS = "/webhook/genesis/events"
EVENT_TYPES = {
    "/webhook/genesis/agent-onboarded": "genesis.agent.onboarded",
    "/webhook/genesis/skill-validated": "genesis.skill.validated",
    AVAILABLE: "genesis.agent.available",
    RATED: "genesis.agent.rated",
}


def payload(data: dict[str, object], **changes: object) -> bytes:
    """A Standard Webhooks payload."""
    return json.dumps({"timestamp": "2026-11-23T08:00:00Z", "data": data, **changes}).encode()


def rated(agent_id: UUID | None = None, rating: int = 4) -> bytes:
    """The body of an agent's rating."""
    return payload({"agent_id": str(agent_id or uuid4()), "rater_id": str(uuid4()), "rating": rating})


class Sender:
    """Signs as one producer."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def headers(
        self,
        body: bytes,
        *,
        message_id: str | None = None,
        timestamp: int | None = None,
        content_type: str = "application/json",
    ) -> dict[str, str]:
        """The headers of a signed request."""
        message_id = message_id or f"msg_{uuid4().hex}"
        seconds = str(int(time.time()) if timestamp is None else timestamp)
        return {
            "content-type": content_type,
            "webhook-id": message_id,
            "webhook-timestamp": seconds,
            "webhook-signature": sign(self.secret, message_id.encode(), seconds.encode(), body).decode(),
        }


async def add_key(settings: Settings, producer: str = "genesis") -> tuple[UUID, Sender]:
    """A new key in the database, and who signs with it."""
    database, key_id, secret = connect(settings, "operator"), new_key_id(), new_secret()
    try:
        await KeyStore(database, MasterKeys(settings)).add(key_id, producer, secret, None)
    finally:
        await database.close()
    return key_id, Sender(secret)


async def read_at(settings: Settings, position: RecordPosition) -> Received:
    """The event at a position."""
    events = consume(settings, topic=position.topic, partitions=[position.partition], start=position.offset)
    async with aclosing(events):
        async for received in events:
            assert received.position == position
            return received
    raise AssertionError(f"nothing at {position}")


async def read_all(
    settings: Settings, topic: str, wanted: Callable[[Received], bool] = lambda _: True
) -> list[Received]:
    """Every event of a topic."""
    return [received async for received in consume(settings, topic=topic) if wanted(received)]
