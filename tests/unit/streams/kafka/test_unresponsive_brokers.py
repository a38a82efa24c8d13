"""Clients of brokers that refuse connections or do not answer, with sockets of this test's own."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataResponse_v0

from streams.kafka import unresponsive_brokers
from streams.kafka.unresponsive_brokers import RECONNECT_BACKOFF_SECONDS, skip_unresponsive_brokers
from tests.support.waiting import DEADLINE_SECONDS


@asynccontextmanager
async def client_of(*ports: int) -> AsyncIterator[AIOKafkaClient]:
    """A client that knows a broker on each port, by numbers from 0 on."""
    client = AIOKafkaClient(bootstrap_servers=[f"127.0.0.1:{port}" for port in ports], request_timeout_ms=600_000)
    skip_unresponsive_brokers(client)
    client.cluster.update_metadata(
        MetadataResponse_v0([(number, "127.0.0.1", port) for number, port in enumerate(ports)], [])
    )
    yield client
    await client.close()


@pytest.fixture
def unresponsive_port() -> Iterator[int]:
    """A port that accepts connections and answers nothing, as a frozen broker's does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections: it is taken, and nobody listens at it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_attempts_to_connect_keep_a_distance(closed_port: int, caplog: pytest.LogCaptureFixture) -> None:
    """However often a broker that refuses is asked for, an attempt follows the one before after the backoff."""
    caplog.set_level(logging.ERROR, "aiokafka")
    async with client_of(closed_port) as client:
        started = time.monotonic()
        for _ in range(4):
            assert not await client.ready(0)
        passed = time.monotonic() - started
    tried = [record for record in caplog.records if str(closed_port) in record.getMessage()]
    assert len(tried) == 4
    assert passed > 2.9 * RECONNECT_BACKOFF_SECONDS


async def test_an_unresponsive_broker_is_given_up_and_skipped(
    unresponsive_port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a connection to it ends at its timeout, and another broker is chosen where any will do."""
    monkeypatch.setattr(unresponsive_brokers, "CONNECT_TIMEOUT_SECONDS", 0.3)
    async with client_of(unresponsive_port, closed_port) as client:
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert not await client.ready(0)
        assert {client.get_random_node() for _ in range(50)} == {1}


async def test_unresponsive_addresses_are_skipped(
    unresponsive_port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bootstrap waits for each address as long as a connection may take, not as long as an answer may."""
    monkeypatch.setattr(unresponsive_brokers, "CONNECT_TIMEOUT_SECONDS", 0.3)
    async with client_of(unresponsive_port, closed_port) as client:
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(KafkaConnectionError):
                await client.bootstrap()
        assert client._request_timeout_ms == 600_000


async def test_connections_to_brokers_that_are_no_longer_listed_are_closed(unresponsive_port: int) -> None:
    """A request to a broker that the cluster has given up fails; the connection to a listed one stays open."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = unresponsive_port, int(other.getsockname()[1])
        async with client_of(*ports) as client:
            kept, given_up = [AIOKafkaConnection("127.0.0.1", port, request_timeout_ms=600_000) for port in ports]
            # Each waits for the broker's versions, which do not come for as long as nobody answers.
            waiting = [asyncio.create_task(connection.connect()) for connection in (kept, given_up)]
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not (kept.connected() and given_up.connected()):
                    await asyncio.sleep(0)
            client._conns[0, ConnectionGroup.DEFAULT] = kept
            client._conns[1, ConnectionGroup.COORDINATION] = given_up

            skipping = client._metadata_update.__self__
            skipping._update(client.cluster, MetadataResponse_v0([(0, "127.0.0.1", ports[0])], []))

            with pytest.raises(KafkaConnectionError):
                await asyncio.wait_for(waiting[1], DEADLINE_SECONDS)
            assert kept.connected()
            assert list(client._conns) == [(0, ConnectionGroup.DEFAULT)]
            kept.close()
            with pytest.raises(KafkaConnectionError):
                await waiting[0]
