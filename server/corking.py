"""One system call for each answer: uvicorn writes head and body apart, and uvloop makes a system call of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class CorkedTransport(asyncio.Transport):
    """A transport that writes everything of one turn of the event loop together, at its end."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, written: Callable[[], None]
    ) -> None:
        """Call `written` after each write."""
        super().__init__()
        self._written = written
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn writes bytes only
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def write_at_once(self, data: bytes) -> None:
        """Write a whole answer, after what waits to be written."""
        self._pieces.append(data)
        self._flush()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._pieces)) + self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._pieces.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        if self._pieces:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self._transport.write(whole)
            self._written()
