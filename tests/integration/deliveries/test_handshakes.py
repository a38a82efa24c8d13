"""Endpoints whose receivers have to agree: none is stored before, and no delivery goes beyond what they allow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from database.connector import Database as Connector
from database.connector import connect
from database.errors import ConstraintRefused
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import (
    EndpointConfiguration,
    EndpointSecrets,
    EndpointStart,
    ReceiverAgreement,
    new_endpoint_id,
)
from deliveries.errors import EndpointRefused, EndpointStateRefused, HandshakeRefused
from deliveries.guard.connections import DeliveryClient
from deliveries.handshake import ask_receiver
from deliveries.signed_request import EndpointKeys
from devstack import sql
from runtime.settings import Settings
from signing.master_key import MasterKeys
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import operations, plant
from tests.support.raw_answers import head, repeats, sends, serving, trickles
from tests.support.receivers import Receiver, receiver

ORIGIN = "plant.example.com"
AGREES = {"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "30"}
SECRETS = EndpointSecrets(EndpointKeys(secrets=(bytes(range(24)),)), (("authorization", "Bearer abc"),))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def local(settings: Settings) -> Settings:
    """Settings whose endpoints may be on 127.0.0.1."""
    return msgspec.structs.replace(
        settings, deliveries_schemes="http,https", deliveries_ports="1-65535", deliveries_allowed_networks="127.0.0.1",
        deliveries_origin=ORIGIN,
    )  # fmt: skip


@pytest_asyncio.fixture
async def client(local: Settings) -> AsyncIterator[DeliveryClient]:
    """The guarded client."""
    made = DeliveryClient(local)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def operator(settings: Settings) -> AsyncIterator[Connector]:
    """plant_operator's connections."""
    made = connect(settings, "operator")
    yield made
    await made.close()


def configuration(port: int, **changes: Any) -> EndpointConfiguration:
    return EndpointConfiguration(
        **{"url": f"http://127.0.0.1:{port}/hooks?a=1", "event_types": ("*",), "handshake": True, **changes}
    )


def agreeing(served: Receiver, **headers: str) -> None:
    served.answer = lambda: web.Response(headers={**AGREES, **headers})


async def test_a_receiver_is_asked_by_name_and_rate(client: DeliveryClient) -> None:
    """One OPTIONS request without a body; none of the subscriber's headers, no signature."""
    async with receiver() as served:
        agreeing(served)
        agreement = await ask_receiver(client, configuration(served.port, rate_per_second=2), ORIGIN, NOW)
    ((method, path, headers, body),) = served.requests
    assert (method, path, body) == ("OPTIONS", "/hooks?a=1", b"")
    assert headers["webhook-request-origin"] == ORIGIN
    assert headers["webhook-request-rate"] == "120"
    assert set(headers) <= {
        "host", "webhook-request-origin", "webhook-request-rate", "user-agent", "accept-encoding", "accept",
        "content-length",
    }  # fmt: skip
    assert agreement == ReceiverAgreement(NOW, 30)


async def test_a_redirect_is_not_followed(client: DeliveryClient) -> None:
    """An answer that leads elsewhere does not agree, whatever else it says."""
    async with receiver() as served:
        served.answer = lambda: web.Response(status=307, headers={**AGREES, "location": "http://127.0.0.1:1/"})
        with pytest.raises(HandshakeRefused, match="307"):
            await ask_receiver(client, configuration(served.port), ORIGIN, NOW)
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        trickles("HTTP/1.1 200 OK\r\nx: "),
        repeats(b"HTTP/1.1 100 Continue\r\n\r\n"),
        repeats(head(200, "x: " + "y" * 1000, length=None)),
        sends(b"nonsense\r\n\r\n"),
    ],
)
async def test_a_hostile_receiver_does_not_agree(client: DeliveryClient, answer: Any) -> None:
    """One that trickles, floods or speaks no HTTP is given up within the endpoint's time."""
    async with serving(answer) as port:
        with pytest.raises(HandshakeRefused):
            await ask_receiver(client, configuration(port, timeout_seconds=1), ORIGIN, NOW)


async def test_the_handshake_is_guarded(settings: Settings) -> None:
    """An address that may not be connected to is not asked either."""
    guarded = DeliveryClient(
        msgspec.structs.replace(settings, deliveries_schemes="http,https", deliveries_ports="1-65535")
    )
    try:
        async with receiver() as served:
            with pytest.raises(EndpointRefused):
                await ask_receiver(guarded, configuration(served.port), ORIGIN, NOW)
        assert served.connections == 0
        assert served.requests == []
    finally:
        await guarded.close()


async def test_no_row_is_there_before_the_receiver_agreed(
    operator: Connector, settings: Settings, database: Database
) -> None:
    """The database refuses an endpoint with a handshake and no agreement, and another URL without a new one."""
    store = EndpointStore(operator, MasterKeys(settings))
    start, agreement = EndpointStart((0,)), ReceiverAgreement(NOW, 30)
    with pytest.raises(ConstraintRefused):
        await store.add(new_endpoint_id(), configuration(9), SECRETS, start, tenant="genesis")
    endpoint_id = new_endpoint_id()
    await store.add(endpoint_id, configuration(9), SECRETS, start, tenant="genesis", agreement=agreement)
    found = await store.find(endpoint_id)
    assert (found.configuration, found.agreement) == (configuration(9), agreement)
    elsewhere = f"UPDATE endpoints SET url = 'http://127.0.0.1:8/' WHERE id = '{endpoint_id}'"
    with pytest.raises(Exception, match="has not agreed"):
        sql.execute(database.superuser_url, [elsewhere])
    later = ReceiverAgreement(datetime.now(UTC), None)
    await store.agree(found, later)
    assert (await store.find(endpoint_id)).agreement == later
    with pytest.raises(EndpointStateRefused):  # it was read before the other one
        await store.agree(found, agreement)


async def test_operators_ask_when_they_add_and_again(local: Settings) -> None:
    """Nothing is stored or recorded where the receiver does not agree; a later answer takes the place of the first."""
    await apply(local)
    async with receiver() as served:
        url = f"http://127.0.0.1:{served.port}/"
        add = ("endpoints", "add", url, "--event-type", "*", "--handshake", "--output", "json")
        refused = await asyncio.to_thread(plant, local, *add)
        assert refused.returncode == 2
        assert "has not agreed" in refused.stderr
        assert json.loads(plant(local, "endpoints", "list", "--output", "json").stdout) == []
        agreeing(served)
        made = await asyncio.to_thread(plant, local, *add)
        assert made.returncode == 0, made.stderr
        endpoint_id = json.loads(made.stdout)["id"]
        agreeing(served, **{"WebHook-Allowed-Rate": "*"})
        asked = await asyncio.to_thread(plant, local, "endpoints", "handshake", endpoint_id)
        assert asked.returncode == 0, asked.stderr
    (row,) = json.loads(plant(local, "endpoints", "show", endpoint_id, "--output", "json").stdout)
    assert (row["handshake"], row["agreed_rate_per_minute"]) == (True, None)
    assert [each.action for each in await operations(local, endpoint_id)] == ["endpoints.add", "endpoints.handshake"]
