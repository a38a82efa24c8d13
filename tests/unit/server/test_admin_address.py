"""The address of the admin listener, and what is answered where it can't be used."""

from __future__ import annotations

import contextlib
import doctest
import socket

import pytest

from runtime.errors import ConfigurationError
from runtime.servers import ServerAddress
from runtime.settings import Settings
from server import admin_address as module
from server.admin_address import admin_address
from server.errors import AddressInUse
from server.http_server import address_of, bind_admin_socket


def test_examples() -> None:
    """Those in the docstrings."""
    assert doctest.testmod(module).failed == 0


def test_the_admin_listener_is_for_this_machine_alone_unless_it_is_said() -> None:
    """With no setting it is on the loopback, whatever host webhooks are taken on."""
    assert admin_address(Settings(ingress_host="0.0.0.0").ingress_admin_address, 8080).host == "127.0.0.1"


@pytest.mark.parametrize("setting", ["8090", "localhost", "127.0.0.1:", ":8090", "http://a:1", "a:1:2", "a:x", "[::1]"])
def test_an_address_that_can_t_be_used_is_named(setting: str) -> None:
    """The error has the name of the setting."""
    with pytest.raises(ConfigurationError, match="PLANT_INGRESS_ADMIN_ADDRESS") as raised:
        admin_address(setting, 8080)
    assert raised.value.why


def test_each_service_has_a_setting_of_its_own() -> None:
    """The error says how to start that service."""
    with pytest.raises(ConfigurationError, match="PLANT_API_ADMIN_ADDRESS") as raised:
        admin_address("8090", 8082, service="api", usual_port=8082)
    assert raised.value.next_step == "PLANT_API_ADMIN_ADDRESS=127.0.0.1:8092 plant api"


@pytest.mark.parametrize("listening", [True, False])
def test_an_admin_port_in_use_says_which_setting_to_change(listening: bool) -> None:
    """As soon as it is bound, before anything is connected to."""
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        address = ServerAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(AddressInUse, match="Can't listen on") as raised:
            bind_admin_socket(address)
    assert raised.value.next_step == "PLANT_INGRESS_ADMIN_ADDRESS=127.0.0.1:0 plant ingress"


def test_an_admin_port_beyond_the_last_one_is_an_error_of_the_same_kind() -> None:
    """Ten ports above ingress's there may be none."""
    with pytest.raises(AddressInUse, match="65540"):
        bind_admin_socket(admin_address("", 65_530))


def test_an_admin_socket_listens_at_once() -> None:
    """So nobody else can listen there between binding and serving; IPv6 has brackets."""
    with contextlib.closing(bind_admin_socket(admin_address("[::1]:0", 8080))) as bound:
        assert address_of(bound).url.startswith("http://[::1]:")
        with contextlib.closing(socket.create_connection(bound.getsockname()[:2])):
            pass
