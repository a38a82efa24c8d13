"""`python -m benchmarks.webhook_receiver`: a subscriber that costs little, and prints its port.

A path decides the answer: `/failing` gets 500, `/hanging` none, all others 204, and `/once/…` 500 for the first request
with a webhook-id. `GET /received` returns when each webhook-id was accepted, and forgets it.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

GOOD = b"HTTP/1.1 204 No Content\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
LENGTH = b"content-length: "
WEBHOOK_ID = b"webhook-id: "

received: dict[bytes, float] = {}
"""When each webhook-id was accepted first, by the monotonic clock, which all processes of a machine share."""
refused: set[bytes] = set()


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
            end = head_end + 4 + (int(_value(head, LENGTH)) if LENGTH in head else 0)
            if len(self._received) < end:
                return
            del self._received[:end]
            path = head.split(b" ", 2)[1]
            if path != b"/hanging":
                self._transport.write(_answer(path, head))


def _answer(path: bytes, head: bytes) -> bytes:
    if path == b"/received":
        body = msgspec.json.encode({message_id.decode(): at for message_id, at in received.items()})
        received.clear()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
    message_id = _value(head, WEBHOOK_ID)
    if path == b"/failing":
        return FAILED
    if path.startswith(b"/once") and message_id not in refused:
        refused.add(message_id)
        return FAILED
    received.setdefault(message_id, time.monotonic())
    return GOOD


def _value(head: bytes, name: bytes) -> bytes:
    begin = head.index(name) + len(name)
    return head[begin:].split(b"\r\n", 1)[0]


async def main() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Subscriber, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
