"""A socket that listens: connections are accepted at once, and served in turns.

uvloop accepts one connection in each step of its loop, in the order in which they came. A few hundred peers that
connect again and again would then be served before anybody else.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

from runtime import metrics
from runtime.logging import get_logger
from server.shares import share_of_host
from server.turns import Turns

log = get_logger(__name__)

ACCEPTED_IN_STEP: Final = 64
WAITING_MAX: Final = 1_024
"""Connections that wait to be served. Where one more comes, the newest of the address that has most is closed."""
TRY_AGAIN_SECONDS: Final = 1.0


class Listener:
    """A bound socket that listens until it is closed, in the place of asyncio's `Server`."""

    waiting_max: ClassVar[int] = WAITING_MAX

    def __init__(
        self,
        bound_socket: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        turns: Turns,
        *,
        backlog: int,
    ) -> None:
        """Begin to listen. Raises OSError where somebody else does."""
        self._socket = bound_socket
        self._make_protocol = make_protocol
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[socket.socket]] = {}
        self._count = 0
        self._connecting: set[asyncio.Task[object]] = set()
        self._closed = False
        bound_socket.listen(backlog)
        self._listen()

    def close(self) -> None:
        """Accept no more, and close what waits to be served."""
        self._closed = True
        self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """Wait until every connection that was to be served is."""
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_IN_STEP):
            try:
                connection, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no files are left: those who wait stay in the kernel
                log.error("server.accept_failed", error=error.strerror)
                self._loop.remove_reader(self._socket)
                self._loop.call_later(TRY_AGAIN_SECONDS, self._listen)
                return
            self._keep(connection, share_of_host(peer[0]))

    def _keep(self, connection: socket.socket, address: str) -> None:
        """Let a connection wait for its address's turn."""
        self._waiting.setdefault(address, deque()).append(connection)
        self._count += 1
        if self._count > self.waiting_max:
            heaviest = max(self._waiting, key=lambda each: len(self._waiting[each]))
            self._pop(heaviest, newest=True).close()
            metrics.SERVER_PEERS_CUT_OFF.labels(reason="too_many").inc()
        self._turns.take(address, lambda: self._serve(address))

    def _pop(self, address: str, *, newest: bool = False) -> socket.socket:
        connections = self._waiting[address]
        connection = connections.pop() if newest else connections.popleft()
        if not connections:
            del self._waiting[address]
        self._count -= 1
        return connection

    def _serve(self, address: str) -> bool:
        """Serve the connection of an address that has waited longest; return False where none is left."""
        if address not in self._waiting:
            return False
        connection = self._pop(address)
        if self._closed:
            connection.close()
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # the peer has left
            connection.close()
