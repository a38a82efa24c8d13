"""Ports: one deployment has one, whichever way two of them begin."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

from ingress.errors import AddressInUse
from ingress.server.http_server import address_of, bind_socket, shared_port

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
