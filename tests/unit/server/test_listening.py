"""A socket that listens: who is served first, who waits, and who is closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import pytest

from server.listening import Listener
from server.turns import Turns
from tests.support.waiting import wait_until_async

ATTACKER, HONEST = "127.0.0.2", "127.0.0.3"


class Greeting(asyncio.Protocol):
    """A protocol that notes its peer's address in `served`."""

    def __init__(self, served: list[str]) -> None:
        self._served = served

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._served.append(transport.get_extra_info("peername")[0])
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")


class Held(Turns):
    """Turns that begin when the test says so."""

    held = True

    def _step(self) -> None:
        if self.held:
            self._loop.call_later(0.005, self._step)
        else:
            super()._step()


@asynccontextmanager
async def listening(turns: Turns, served: list[str]) -> AsyncIterator[tuple[Listener, int]]:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        bound.setblocking(False)
        listener = Listener(bound, lambda: Greeting(served), turns, backlog=100)
        try:
            yield listener, bound.getsockname()[1]
        finally:
            listener.close()
            await listener.wait_closed()


@contextlib.contextmanager
def peers(port: int, address: str, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            peer = stack.enter_context(socket.socket())
            peer.bind((address, 0))
            peer.connect(("127.0.0.1", port))
            peer.setblocking(False)
            made.append(peer)
        yield made


async def test_a_connection_is_served() -> None:
    served = list[str]()
    async with listening(Turns(asyncio.get_running_loop()), served) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readexactly(5) == b"hello"
        writer.close()
    assert served == ["127.0.0.1"]


async def test_who_connects_once_is_served_before_who_connects_often() -> None:
    """Forty connections of an attacker came first; the honest one is the second to be served."""
    turns, served = Held(asyncio.get_running_loop(), turns_in_step=1), list[str]()
    async with listening(turns, served) as (_, port):
        with peers(port, ATTACKER, 40), peers(port, HONEST, 1):
            await wait_until_async(lambda: len(turns) == 41, "all wait")
            turns.held = False
            await wait_until_async(lambda: len(served) == 41, "all are served")
    assert served[:3] == [ATTACKER, HONEST, ATTACKER]


async def test_too_many_that_wait_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of the address that has most makes room, so the honest ones that come last are served."""
    monkeypatch.setattr(Listener, "waiting_max", 8)
    turns, served = Held(asyncio.get_running_loop()), list[str]()
    async with listening(turns, served) as (_, port):
        with peers(port, ATTACKER, 20) as attackers, peers(port, HONEST, 2) as honest:
            await wait_until_async(lambda: len(turns) == 22, "all have come")
            await wait_until_async(lambda: _closed(attackers) == 14, "too many are closed")
            assert _closed(honest) == 0
            assert _closed(attackers[:6]) == 0
            turns.held = False
            await wait_until_async(lambda: len(served) == 8, "the others are served")
            assert served.count(HONEST) == 2
        with peers(port, ATTACKER, 1):
            await wait_until_async(lambda: len(served) == 9, "there is room again")


async def test_what_waits_when_the_listener_closes_is_closed() -> None:
    turns, served = Held(asyncio.get_running_loop()), list[str]()
    async with listening(turns, served) as (listener, port):
        with peers(port, HONEST, 3) as waiting:
            await wait_until_async(lambda: len(turns) == 3, "all wait")
            listener.close()
            turns.held = False
            await wait_until_async(lambda: _closed(waiting) == 3, "all are closed")
    assert served == []


async def test_a_full_table_of_files_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects meanwhile waits in the kernel, and is served when there are files again."""
    monkeypatch.setattr("server.listening.TRY_AGAIN_SECONDS", 0.01)
    served, full = list[str](), [True]

    class Full(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if full.pop() if full else False:
                raise OSError(24, "Too many open files")
            return super().accept()

    with closing(Full()) as bound:
        bound.bind(("127.0.0.1", 0))
        bound.setblocking(False)
        loop = asyncio.get_running_loop()
        listener = Listener(bound, lambda: Greeting(served), Turns(loop), backlog=100)
        with peers(bound.getsockname()[1], HONEST, 1):
            await wait_until_async(lambda: served == [HONEST], "it is served")
        listener.close()
        await listener.wait_closed()
    assert not full


def _closed(peers: list[socket.socket]) -> int:
    """Return how many of the peers have read the end of their connection."""
    count = 0
    for peer in peers:
        with contextlib.suppress(BlockingIOError):
            count += peer.recv(1, socket.MSG_PEEK) == b""
    return count
