"""`python -m benchmarks.webhook_receiver`: a subscriber that costs little, and prints its port.

A path decides the answer: `/failing` gets 500, `/hanging` none, all others 204.
"""

from __future__ import annotations

import asyncio

GOOD = b"HTTP/1.1 204 No Content\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
LENGTH = b"content-length: "


class Subscriber(asyncio.Protocol):
    """One connection: requests one after the other, each with a content-length."""

    def __init__(self) -> None:
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (head_end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:head_end]).lower()
            begin = head.index(LENGTH) + len(LENGTH)
            end = head_end + 4 + int(head[begin:].split(b"\r\n", 1)[0])
            if len(self._received) < end:
                return
            del self._received[:end]
            path = head.split(b" ", 2)[1]
            if path != b"/hanging":
                self._transport.write(FAILED if path == b"/failing" else GOOD)


async def main() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Subscriber, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
