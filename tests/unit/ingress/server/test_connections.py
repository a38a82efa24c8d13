"""The bounds of connections, by the event loop's time instead of waiting, and over a socket of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from ingress.server import connections
from ingress.server.connections import BoundedConnection, Stage

DEADLINE_SECONDS = 120
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer 204 once the body is whole."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def connection() -> BoundedConnection:
    config = Config(application, http=BoundedConnection, ws="none", log_config=None)
    config.load()
    return BoundedConnection(config, ServerState(), {})


@pytest.mark.parametrize(
    ("stage", "body_bytes", "timeout_seconds"),
    [
        ("head", 0, connections.HEAD_TIMEOUT_SECONDS),
        ("body", 0, connections.BODY_TIMEOUT_SECONDS),
        ("body", 10 * connections.BODY_BYTES_PER_SECOND_MIN, connections.BODY_TIMEOUT_SECONDS + 10),
        ("answer", 0, connections.REQUEST_TIMEOUT_SECONDS),
        ("idle", 0, connections.KEEP_ALIVE_TIMEOUT_SECONDS),
    ],
)
async def test_each_stage_has_its_timeout(stage: Stage, body_bytes: int, timeout_seconds: float) -> None:
    """A body has longer, the more of it has come."""
    peer = connection()
    peer.stage, peer.since, peer.body_bytes = stage, 1_000.0, body_bytes
    assert not peer.overdue(1_000.0 + timeout_seconds - 0.1)
    assert peer.overdue(1_000.0 + timeout_seconds + 0.1)


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    config, state = Config(application, http=BoundedConnection, ws="none", log_config=None), ServerState()
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedConnection(config, state, {}), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_one_connection_too_many_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered and closed; those before it are served, and when one has closed the next one is."""
    monkeypatch.setattr(BoundedConnection, "connections_max", 1)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        assert (await reader.readline()).startswith(b"HTTP/1.1 204 ")
        refused, other = await asyncio.open_connection("127.0.0.1", port)
        answer = await refused.read()
        other.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        writer.write(REQUEST)
        await reader.readuntil(b"204 ")
        writer.close()
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            line = await reader.readline()
            writer.close()
            if line.startswith(b"HTTP/1.1 204 "):
                return
            await asyncio.sleep(0)


async def test_requests_far_ahead_of_their_answers_end_the_connection() -> None:
    """No more are answered than may be pipelined, and the one that was being read."""
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST * 500)
        try:
            answers = await reader.read()
        except ConnectionResetError:
            answers = b""
        writer.close()
        assert answers.count(b"HTTP/1.1 204 ") <= connections.PIPELINED_MAX + 1
