"""Ports: one deployment has one, whichever way two of them begin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import Any

import pytest

from server import http_server
from server.connections import BoundedConnection
from server.errors import AddressInUse
from server.http_server import Server, _config, address_of, bind_socket, shared_port
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async

HOST = "127.0.0.1"


def unused_port() -> int:
    with contextlib.closing(bind_socket(HOST, 0, shared=False)) as bound:
        return address_of(bound).port


def refused(port: int) -> bool:
    """Return whether another deployment of several processes is kept from the port."""
    try:
        with shared_port(HOST, port):
            return False
    except AddressInUse:
        return True


def test_two_deployments_that_begin_do_not_share_a_port() -> None:
    """Nobody listens yet, and the second one is refused; when the first has ended, it is not."""
    with shared_port(HOST, 0) as bound_socket:
        port = address_of(bound_socket).port
        assert refused(port)
        bind_socket(HOST, port, shared=True).close()  # a process of the first deployment
    assert not refused(port)


def test_a_port_on_which_a_process_listens_is_in_use() -> None:
    """Also where it was left by a deployment whose parent is no more, and where it listens on every address."""
    for host in (HOST, "0.0.0.0"):
        with contextlib.closing(bind_socket(host, 0, shared=True)) as listener:
            listener.listen()
            assert refused(address_of(listener).port)


@pytest.mark.skipif(sys.platform != "linux", reason="names without a file")
def test_a_name_that_anybody_can_bind_keeps_nobody_from_a_port() -> None:
    """A socket in the abstract namespace, which has no owner and no rights, is not the lock."""
    port = unused_port()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as squatter:
        squatter.bind(f"\0plant-ingress {HOST} {port}")
        assert not refused(port)


def test_connections_that_have_closed_do_not_keep_a_port() -> None:
    """A deployment starts again at once, though its last connections wait for their end in the kernel."""
    listener = bind_socket(HOST, 0, shared=True)
    listener.listen()
    address = listener.getsockname()
    peer = socket.create_connection(address)
    listener.setblocking(True)
    accepted, _ = listener.accept()
    accepted.close()  # this side closes first, and so waits
    peer.close()
    listener.close()
    assert not refused(address[1])


def test_the_error_says_what_to_do() -> None:
    """What, why and the next step."""
    with contextlib.ExitStack() as held:
        port = address_of(held.enter_context(shared_port(HOST, 0))).port
        with pytest.raises(AddressInUse) as raised:
            held.enter_context(shared_port(HOST, port))
    assert "Another plant ingress" in raised.value.why


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, then answer a lot."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


async def test_the_end_waits_for_no_peer_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that does not go on is answered with 503, an unread answer is dropped, and nothing is logged."""
    monkeypatch.setattr(http_server, "PEER_END_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr(http_server, "SHUTDOWN_TIMEOUT_SECONDS", 3_600)
    listener = bind_socket(HOST, 0, shared=False)
    server = Server(_config(echo, BoundedConnection, "off", 75), lambda: None, lambda: None)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(DEADLINE_SECONDS):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            await wait_until_async(lambda: server.started, "the server has started")
            port = address_of(listener).port
            (slow, sending), (_, unread) = [await asyncio.open_connection(HOST, port) for _ in range(2)]
            sending.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nab")
            unread.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await wait_until_async(lambda: len(server.server_state.tasks) == 2, "both requests are under way")
            server.should_exit = True
            assert b"503" in await slow.readline()
            await serving
            sending.close()
            unread.close()
    assert caplog.records == []
