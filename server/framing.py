"""The framing of requests and answers as HTTP asks for it (RFC 9112, sections 3.2 and 6; RFC 9110, section 9.3.2).

uvicorn takes a request without Host, and sends an answer in chunks to a peer that knows HTTP/1.0 alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")

HOSTS_REMEMBERED: Final = 64
"""Most peers write the same one; a head has 32 KiB at most."""

App = Any
"""An ASGI application, as uvicorn types it."""


def framing_fault(http_version: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return why a request's head can't be read in one way by everybody on its way, or None.

    >>> framing_fault("1.1", [(b"host", b"plant.example:8080")])
    >>> framing_fault("1.1", [])
    'A request has one Host.'
    """
    if http_version != "1.1" and http_version != "1.0":
        return "This is neither HTTP/1.1 nor HTTP/1.0."
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _is_host(value):
                return "The Host is not one."
        elif name == b"transfer-encoding":
            if http_version != "1.1":
                return "HTTP/1.0 has no Transfer-Encoding."
            if value.strip().lower() != b"chunked":  # httptools takes `gzip, chunked`, and undoes the second alone
                return "The only Transfer-Encoding is chunked."
    if hosts > 1 or (hosts == 0 and http_version == "1.1"):
        return "A request has one Host."
    return None


@lru_cache(HOSTS_REMEMBERED)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def as_get(app: App) -> App:
    """Return an application to which HEAD is GET. uvicorn leaves out the body of its answer."""

    async def get(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "method": "GET"}, receive, send)

    return get


def close_delimited(app: App, cycle: RequestResponseCycle) -> App:
    """Return an application whose answers without a length end with the connection, not in chunks."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_unframed(message: Any) -> None:
            if message["type"] == "http.response.start":
                if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                    cycle.chunked_encoding = False
            elif cycle.chunked_encoding is False and cycle.expected_content_length == 0:
                cycle.expected_content_length = len(message.get("body", b""))  # else uvicorn calls the body too long
            await send(message)

        await app(scope, receive, send_unframed)

    return answer
