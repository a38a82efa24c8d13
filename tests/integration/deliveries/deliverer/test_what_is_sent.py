"""What a running deliverer sends to an endpoint: its form, its headers, its signatures, and how long it may take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from standardwebhooks import Webhook

from deliveries.deliverer.delivery_process import DeliveryTopics
from deliveries.endpoint_store import open_endpoint_store
from deliveries.endpoints import EndpointId, EndpointSecrets
from deliveries.guard.connections import DeliveryClient
from deliveries.signed_request import EndpointKeys
from operations.services.deliverer import Deliverer
from runtime.settings import Settings
from signing.ed25519 import PrivateKey
from signing.hmac_secrets import encode_secret
from signing.signatures import Ed25519Key, Verified, verify_signature
from tests.support.delivering import SECRET, add_endpoint, delivering, publish, queued
from tests.support.receivers import Receiver, receiver
from tests.support.waiting import wait_until_async

Sent = tuple[dict[str, str], bytes]
"""Headers and body of a request."""

NEW_SECRET = bytes(range(32, 64))
PAIR, NEW_PAIR = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class RunningDeliverer:
    """A deliverer that runs, and a receiver of what it sends."""

    def __init__(self, settings: Settings, topics: DeliveryTopics, there: Receiver, deliverer: Deliverer) -> None:
        self.settings = settings
        self.process = deliverer.process
        self._topics = topics
        self._there = there

    async def add(self, path: str = "/", **choices: Any) -> EndpointId:
        """Store an endpoint at the receiver."""
        return await add_endpoint(self.settings, f"http://127.0.0.1:{self._there.port}{path}", **choices)

    async def send(self, endpoint_id: EndpointId, **changes: Any) -> Sent:
        """Have a delivery sent, and return what the receiver got."""
        record = queued(endpoint_id, len(self._there.requests), **changes)
        await publish(self.settings, self._topics.deliveries, [record])

        def got() -> list[Sent]:
            wanted = str(record.delivery_id)
            return [(head, body) for _, _, head, body in self._there.requests if head["webhook-id"] == wanted]

        await wait_until_async(got, "it is sent")
        return got()[0]


@pytest_asyncio.fixture
async def running(local: Settings, topics: DeliveryTopics) -> AsyncIterator[RunningDeliverer]:
    """A deliverer, and no endpoint yet."""
    async with receiver() as there, delivering(local, topics) as deliverer:
        yield RunningDeliverer(local, topics, there, deliverer)


async def test_an_endpoint_gets_cloud_events_where_it_has_chosen_them(running: RunningDeliverer) -> None:
    """With the entity as subject, and the trace that the event came with."""
    endpoint_id, event_id, entity_id = await running.add(payload_form="cloud_event"), uuid4(), uuid4()
    headers, body = await running.send(
        endpoint_id, event_id=event_id, entity_id=entity_id, traceparent=TRACEPARENT, data=b'{"rating":5}'
    )
    assert headers["content-type"] == "application/cloudevents+json"
    assert headers["traceparent"] == TRACEPARENT
    assert msgspec.json.decode(body) == {
        "specversion": "1.0", "id": str(event_id), "source": "plant/tests", "type": "genesis.agent.available",
        "subject": str(entity_id), "time": "2026-03-01T12:00:00Z", "datacontenttype": "application/json",
        "data": {"rating": 5},
    }  # fmt: skip


async def test_a_request_has_the_headers_of_its_subscriber(running: RunningDeliverer) -> None:
    """They are kept encrypted, and reach the endpoint as they were given, beside Plant's own."""
    custom = {"authorization": "Bearer abc", "x-tenant": "of the subscriber"}
    secrets = EndpointSecrets(EndpointKeys(secrets=(SECRET,)), tuple(custom.items()))
    headers, body = await running.send(await running.add(secrets_=secrets))
    assert custom.items() <= headers.items()
    assert Webhook(encode_secret(SECRET)).verify(body, headers)["type"] == "genesis.agent.available"


async def test_an_attempt_may_take_as_long_as_its_endpoint_says(
    running: RunningDeliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 seconds where nothing was chosen."""
    send, given = DeliveryClient.send, dict[str, float]()

    def noted(
        client: DeliveryClient, url: str, *arguments: Any, timeout_seconds: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        given[url.rpartition("/")[2]] = timeout_seconds
        return send(client, url, *arguments, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(DeliveryClient, "send", noted)
    await running.send(await running.add("/default"))
    await running.send(await running.add("/chosen", timeout_seconds=3))
    assert given == {"default": 15.0, "chosen": 3.0}


async def test_both_keys_of_a_rotation_sign_in_a_deliverer_that_runs(running: RunningDeliverer) -> None:
    """Of both schemes: a receiver that has the new key or the old one, secret or public, verifies each request."""
    secrets = EndpointSecrets(EndpointKeys(secrets=(SECRET,), private_keys=(PAIR,)))
    endpoint_id = await running.add(secrets_=secrets)
    check_signed(await running.send(endpoint_id), [SECRET], [PAIR])
    async with open_endpoint_store(running.settings) as store:
        overlap = timedelta(hours=1)
        await store.rotate(endpoint_id, "v1", NEW_SECRET, None, overlap)
        await store.rotate(endpoint_id, "v1a", NEW_PAIR.seed, NEW_PAIR.public_key, overlap)
    await running.process.endpoints.refresh()
    check_signed(await running.send(endpoint_id), [NEW_SECRET, SECRET], [NEW_PAIR, PAIR])


def check_signed(sent: Sent, secrets: list[bytes], pairs: list[PrivateKey]) -> None:
    """Check that a request has a signature of each key, and no other."""
    headers, body = sent
    versions = [each.partition(",")[0] for each in headers["webhook-signature"].split()]
    assert versions == ["v1"] * len(secrets) + ["v1a"] * len(pairs)
    for secret in secrets:
        assert Webhook(encode_secret(secret)).verify(body, headers)
    message_id, timestamp, signatures = [
        headers[f"webhook-{name}"].encode() for name in ("id", "timestamp", "signature")
    ]
    for pair in pairs:
        key = Ed25519Key(id="k", owner="subscriber", public_key=pair.public_key)
        assert verify_signature([key], message_id, timestamp, signatures, body, float(timestamp)) == Verified(key)
