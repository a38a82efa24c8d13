"""A front of a Postgres that can become unresponsive, as a lost machine does, or end sessions, as a shutdown does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

SHUTDOWN = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


class UnresponsiveFront:
    """A proxy that passes bytes on; while it is unresponsive, connections are accepted and kept, and nothing passes."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._ways: set[asyncio.Task[None]] = set()
        self._clients: list[asyncio.StreamWriter] = []
        self._responding = asyncio.Event()
        self._responding.set()
        self.port = 0

    @property
    def address(self) -> str:
        """The upstream's address by way of here."""
        url = self._upstream
        return url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{self.port}").geturl()

    def stop_responding(self) -> None:
        """Pass nothing on: on the connections that exist never again, on new ones until `respond`."""
        self._responding.clear()

    def respond(self) -> None:
        """Pass bytes on for connections made from now on."""
        self._responding = asyncio.Event()
        self._responding.set()

    def end_sessions(self) -> None:
        """Send to all clients the message of a server's shutdown; their connections stay open a little longer."""
        for client in self._clients:
            client.write(b"E" + (len(SHUTDOWN) + 4).to_bytes(4, "big") + SHUTDOWN)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        responding = self._responding
        self._clients.append(writer)
        with contextlib.suppress(OSError):
            upstream_reader, upstream_writer = await asyncio.open_connection(
                self._upstream.hostname, self._upstream.port
            )
            for way in ((reader, upstream_writer), (upstream_reader, writer)):
                task = asyncio.create_task(_pump(*way, responding))
                self._ways.add(task)
                task.add_done_callback(self._ways.discard)

    async def end(self) -> None:
        for task in self._ways:
            task.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, responding: asyncio.Event) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await responding.wait()
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def unresponsive_front(upstream: str) -> AsyncIterator[UnresponsiveFront]:
    """Listen on a loopback port for the block."""
    front = UnresponsiveFront(upstream)
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        await front.end()
