"""A front of a Postgres that can fall silent or say farewell, as a server does whose machine or network is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

FAREWELL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


class SilentFront:
    """Passes bytes on; while `silent`, connections are accepted and kept, and nothing passes."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._ways: set[asyncio.Task[None]] = set()
        self._clients: list[asyncio.StreamWriter] = []
        self._heard = asyncio.Event()
        self._heard.set()
        self.port = 0

    @property
    def address(self) -> str:
        """The upstream's address by way of here."""
        url = self._upstream
        return url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{self.port}").geturl()

    def fall_silent(self) -> None:
        """For every connection that there is, for good, and for new ones until `speak`."""
        self._heard.clear()

    def speak(self) -> None:
        """To those who connect from now on."""
        self._heard = asyncio.Event()
        self._heard.set()

    def say_farewell(self) -> None:
        """To all clients, as a server does that is shut down; their connections stay open a little longer."""
        for client in self._clients:
            client.write(b"E" + (len(FAREWELL) + 4).to_bytes(4, "big") + FAREWELL)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = self._heard
        self._clients.append(writer)
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
            for way in ((reader, there_writer), (there_reader, writer)):
                task = asyncio.create_task(_pump(*way, heard))
                self._ways.add(task)
                task.add_done_callback(self._ways.discard)

    async def end(self) -> None:
        for task in self._ways:
            task.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: asyncio.Event) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await heard.wait()
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def silent_front(upstream: str) -> AsyncIterator[SilentFront]:
    """Listens on a loopback port for the block."""
    front = SilentFront(upstream)
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        await front.end()
