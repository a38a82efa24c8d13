"""What a receiver sends, byte by byte, and the server that sends it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def sends(*parts: bytes, then: Answer | None = None) -> Answer:
    """Return an answer of these bytes; after them the connection closes, unless there is something else to do."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then is not None:
            await then(reader, writer)

    return answer


def repeats(part: bytes) -> Answer:
    """Return an answer that sends the same bytes for as long as they are taken."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    return answer


def trickles(text: bytes) -> Answer:
    """Return an answer of these bytes, one in a twentieth of a second."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in text:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    return answer


async def waits(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Send nothing, and keep the connection."""
    await asyncio.Event().wait()


async def closes_its_side(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that nothing more comes, and keep the other direction."""
    writer.write_eof()
    await asyncio.Event().wait()


async def resets(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset, whether or not all that came has been read."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def head(status: int | str, *lines: str, length: int | None = 0) -> bytes:
    """Return the head of an answer."""
    more = [*lines, *([] if length is None else [f"Content-Length: {length}"])]
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} x", *more, "")).encode()


def chunked(*parts: bytes) -> bytes:
    """Return the head and the chunks of an answer that ends as it should."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head(200, "Transfer-Encoding: chunked", length=None) + chunks + b"0\r\n\r\n"


@asynccontextmanager
async def serving(answer: Answer, *, at_once: bool = False) -> AsyncIterator[int]:
    """Serve an answer on a port of the loopback interface, once the head of a request is there, or at once."""

    under_way: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                if not at_once:
                    await reader.readuntil(b"\r\n\r\n")
                await answer(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            under_way.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
