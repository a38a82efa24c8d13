"""Requests on a connection that has just closed, in each loop that Plant runs in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

from streams.kafka.closed_connections import expect_closed_connections

Run = Callable[[Coroutine[Any, Any, None]], None]


async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a connection: nothing is answered, until the peer closes it."""
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


@pytest.fixture
def expecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka's connections with the repair, and without the versions that a broker would tell."""

    async def tell_versions(connection: AIOKafkaConnection) -> None:
        connection._versions = {ApiVersionRequest.API_KEY: (0, 0)}

    monkeypatch.setattr(AIOKafkaConnection, "_do_version_lookup", tell_versions)
    expect_closed_connections()


@pytest.mark.usefixtures("expecting")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("steps", range(4))
def test_a_request_fails_as_aiokafka_expects(run: Run, steps: int) -> None:
    """However little of a connection's end the client has noticed, its request raises or answers a KafkaError."""

    async def send_after_the_end() -> None:
        server = await asyncio.start_server(wait_for_the_end, "127.0.0.1", 0)
        connection = AIOKafkaConnection("127.0.0.1", server.sockets[0].getsockname()[1])
        await connection.connect()
        connection._writer.transport.abort()
        for _ in range(steps):
            await asyncio.sleep(0)
        with pytest.raises(KafkaConnectionError):
            await connection.send(ApiVersionRequest())
        assert not connection.connected()
        server.close()
        await server.wait_closed()

    run(send_after_the_end())


@pytest.mark.usefixtures("expecting")
async def test_an_error_of_another_kind_is_raised() -> None:
    """A defect is no broken connection: it would be tried again without end."""

    class Request:
        def prepare(self, _versions: object) -> None:
            raise RuntimeError("a defect")

    async with await asyncio.start_server(wait_for_the_end, "127.0.0.1", 0) as server:
        connection = AIOKafkaConnection("127.0.0.1", server.sockets[0].getsockname()[1])
        await connection.connect()
        with pytest.raises(RuntimeError, match="a defect"):
            connection.send(Request())
        assert connection.connected()
        connection.close()


def test_the_repair_is_made_once() -> None:
    """However many clients are made, a request passes through it once."""
    expect_closed_connections()
    send = AIOKafkaConnection.send
    expect_closed_connections()
    assert AIOKafkaConnection.send is send
