"""The heads of an answer, bounded: interim ones (1xx) above all, of which a receiver may send any number.

aiohttp reads them in a loop that neither counts them nor lets others have their turn while more of them are there, and
it parses all that a socket had at once: a flood of small heads held up the loop, its timeouts too, and took 20 KB of
memory for each KB that came. Here they are parsed a slice at a time, and a connection that sends too many is closed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

HEADS_MAX: Final = 17
"""Heads that answer one request: sixteen interim ones, and the last."""
SLICE_BYTES: Final = 4 * 1024
"""What is parsed at a time: some two hundred of the shortest heads."""


class BoundedHeads(ResponseHandler):
    """A connection to a receiver. One that sends more heads than belong to a request fails, and is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._heads = 0

    def set_response_params(self, **params: Any) -> None:
        """Begin to read the answer to a request."""
        self._heads = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, as long as it is wanted."""
        if len(data) <= SLICE_BYTES:
            super().data_received(data)
            return
        for start in range(0, len(data), SLICE_BYTES):
            if self.exception() is not None or self.transport is None or self.transport.is_closing():
                return
            super().data_received(data[start : start + SLICE_BYTES])

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take a head; the first one that is too many ends the connection."""
        self._heads += 1
        if self._heads <= HEADS_MAX:
            super().feed_data(data, size)
        elif self.exception() is None:
            self.set_exception(HttpProcessingError(code=400, message="There are too many heads."))
            if self.transport is not None:
                self.transport.close()


def bound_heads(connector: aiohttp.BaseConnector) -> None:
    """Make the connections of a connector, which has none yet, bounded ones. Needs a running loop."""
    connector._factory = partial(BoundedHeads, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # invariant
