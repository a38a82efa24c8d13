"""An HTTP proxy of a test's own that opens tunnels by CONNECT, all of them to the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.tls_front import pump


class ConnectProxy:
    """Records the heads that it gets, which is all that it can read."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Open the tunnel that a client asks for, and pass on bytes until both ends have closed it."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            self.heads.append(head)
            port = int(head.split()[1].rpartition(":")[2])
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ways = [pump(reader, there_writer), pump(there_reader, writer)]
            await asyncio.gather(*ways, return_exceptions=True)
        writer.close()


@asynccontextmanager
async def connect_proxy(host: str) -> AsyncIterator[ConnectProxy]:
    """Listen on a port of this address."""
    proxy, tasks = ConnectProxy(), set[asyncio.Task[None]]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, host, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
