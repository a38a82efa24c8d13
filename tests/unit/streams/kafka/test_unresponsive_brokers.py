"""Clients and brokers that are away or silent, with sockets of this test's own."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataResponse_v0

from streams.kafka import unresponsive_brokers as silent_brokers
from streams.kafka.unresponsive_brokers import DIAL_AGAIN_SECONDS, skip_unresponsive_brokers


@asynccontextmanager
async def client_of(*ports: int) -> AsyncIterator[AIOKafkaClient]:
    """A client that knows a broker on each port, by numbers from 0 on."""
    client = AIOKafkaClient(bootstrap_servers=[f"127.0.0.1:{port}" for port in ports], request_timeout_ms=30_000)
    skip_unresponsive_brokers(client)
    client.cluster.update_metadata(
        MetadataResponse_v0([(number, "127.0.0.1", port) for number, port in enumerate(ports)], [])
    )
    yield client
    await client.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing, as a frozen broker's does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_a_broker_that_refuses_is_not_dialled_all_the_time(
    closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is asked for, it is tried, and logged, a few times a second."""
    caplog.set_level(logging.ERROR, "aiokafka")
    async with client_of(closed_port) as client:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert not await client.ready(0)
    tried = [record for record in caplog.records if "Unable connect" in record.getMessage()]
    assert 2 <= len(tried) <= 1.0 / DIAL_AGAIN_SECONDS + 2


async def test_a_silent_broker_is_given_up_and_left_out(
    silent_port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a connection to it takes no longer than is set, and another broker is chosen where any will do."""
    monkeypatch.setattr(silent_brokers, "OPEN_SECONDS", 0.3)
    async with client_of(silent_port, closed_port) as client:
        async with asyncio.timeout(5):
            assert not await client.ready(0)
        assert {client.get_random_node() for _ in range(50)} == {1}


async def test_silent_addresses_are_left_for_the_next(
    silent_port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first contact waits at no address for as long as for an answer."""
    monkeypatch.setattr(silent_brokers, "OPEN_SECONDS", 0.3)
    async with client_of(silent_port, closed_port) as client:
        async with asyncio.timeout(5):
            with pytest.raises(KafkaConnectionError):
                await client.bootstrap()
        assert client._request_timeout_ms == 30_000
