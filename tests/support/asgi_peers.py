"""Peers of an ASGI handler, without a network: what they send, and what they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar.types import HTTPScope, Receive


def peer(*pieces: bytes, gone: bool = False, endless: bool = False) -> Receive:
    """Return a peer that sends these pieces, then closes, stalls without end, or has ended with the last."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": gone or endless or index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        if gone:
            return {"type": "http.disconnect"}
        return await asyncio.get_running_loop().create_future()

    return receive


def post_scope(headers: Mapping[str, str]) -> HTTPScope:
    """Return the scope of a POST with these headers."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": raw}
    return scope  # type: ignore[no-any-return]  # a part of one: what handlers of webhooks read


class Answered:
    """What a handler has answered; call it as `send`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]
            self.ended = not message.get("more_body", False)

    @property
    def kind(self) -> str:
        """The kind of problem."""
        return str(msgspec.json.decode(self.body)["type"]).rpartition(":")[2]
