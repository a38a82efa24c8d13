"""A peer that sends large bodies which nobody has signed, and keeps their connections open."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Final

PART: Final = b" " * 65536
SEND_TIMEOUT_SECONDS: Final = 30
KINDS: Final[Mapping[str, int]] = {
    "application/json": 255 * 1024,
    "application/cloudevents-batch+json": 2047 * 1024,
    "application/x-ndjson": 63 * 1024 * 1024,
}
"""Bytes of a body that ingress still takes, by its content type."""


@contextlib.contextmanager
def held_bodies(port: int, producer: str, content_type: str, count: int) -> Iterator[int]:
    """Send as many bodies but for their last byte, and hold them; yields how many bytes ingress took."""
    with contextlib.ExitStack() as opened:
        yield sum(_send_all_but_a_byte(opened, port, producer, content_type) for _ in range(count))


def _send_all_but_a_byte(opened: contextlib.ExitStack, port: int, producer: str, content_type: str) -> int:
    size_bytes = KINDS[content_type]
    head = (
        "POST /webhook/genesis/events HTTP/1.1\r\nhost: plant\r\n"
        f"content-type: {content_type}\r\ncontent-length: {size_bytes}\r\nplant-producer: {producer}\r\n"
        f"webhook-id: msg_{secrets.token_hex(8)}\r\nwebhook-timestamp: {int(time.time())}\r\n"
        f"webhook-signature: v1,{'A' * 43}=\r\n\r\n"
    )
    peer = opened.enter_context(socket.create_connection(("127.0.0.1", port), SEND_TIMEOUT_SECONDS))
    sent_bytes = 0
    # Ingress refuses a body, or closes its connection, at any time.
    with contextlib.suppress(OSError):
        peer.sendall(head.encode())
        while (left_bytes := size_bytes - 1 - sent_bytes) > 0:
            peer.sendall(PART[:left_bytes])
            sent_bytes += len(PART[:left_bytes])
    return sent_bytes
