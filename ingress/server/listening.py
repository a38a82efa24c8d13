"""A socket that listens: connections are accepted at once, and served in turns.

uvloop accepts one connection in each step of its loop, in the order in which they came. A few hundred peers that
connect again and again would then be served before anybody else.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Final

from ingress.addresses import share_of_host
from ingress.server.turns import Turns
from runtime import metrics
from runtime.logging import get_logger

log = get_logger(__name__)

ACCEPTED_IN_STEP: Final = 64
WAITING_MAX: Final = 512
"""Connections that wait to be served; the next ones are closed."""
ADDRESS_SHARE: Final = 2
"""Of those an address may have one part in so many."""
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
        self._waiting: Counter[str] = Counter()
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
                log.error("ingress.accept_failed", error=error.strerror)
                self._loop.remove_reader(self._socket)
                self._loop.call_later(TRY_AGAIN_SECONDS, self._listen)
                return
            self._keep(connection, share_of_host(peer[0]))

    def _keep(self, connection: socket.socket, address: str) -> None:
        """Let a connection wait for its turn, if neither its address nor all together have too many that wait."""
        if self._waiting.total() >= self.waiting_max or self._waiting[address] >= self.waiting_max // ADDRESS_SHARE:
            connection.close()
            metrics.INGRESS_PEERS_CUT_OFF.labels(reason="too_many").inc()
            return
        self._waiting[address] += 1
        self._turns.take(address, lambda: self._serve(connection, address))

    def _serve(self, connection: socket.socket, address: str) -> bool:
        self._waiting[address] -= 1
        if not self._waiting[address]:
            del self._waiting[address]
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
