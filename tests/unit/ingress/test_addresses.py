"""Whose address a request comes from, as proxies say it or don't."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from ingress import addresses
from ingress.addresses import TrustedProxies
from runtime.errors import ConfigurationError
from tests.support.asgi_peers import post_scope

PROXIES = TrustedProxies("10.0.0.0/8, 192.0.2.7,2001:db8:1::/48")


def address(peer: str | None, proxies: TrustedProxies = PROXIES, **headers: str) -> str | None:
    scope: Any = {**post_scope({name.replace("_", "-"): value for name, value in headers.items()})}
    scope["client"] = None if peer is None else (peer, 1234)
    return proxies.address_of(scope)


@pytest.mark.parametrize(
    ("peer", "share"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        (None, None),
        ("testclient", None),
    ],
)
def test_a_peer_has_its_own_address(peer: str | None, share: str | None) -> None:
    """An IPv6 network of 64 bits is one address; a socket without one has none."""
    assert address(peer) == share


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "via"])
def test_behind_a_proxy_that_is_not_named_there_is_no_address(header: str) -> None:
    """Its peer may stand for everybody, and the header may be made up."""
    assert address("198.51.100.1", **{header: "203.0.113.5"}) is None
    assert address("10.1.2.3", TrustedProxies(""), **{header: "203.0.113.5"}) is None


@pytest.mark.parametrize(
    ("forwarded", "share"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("198.51.100.9, 203.0.113.5", "203.0.113.5"),
        ("198.51.100.9, 203.0.113.5 , 192.0.2.7,10.9.9.9", "203.0.113.5"),
        ("10.9.9.9", None),
        ("unknown", None),
        ("198.51.100.9, _hidden", None),
        ("", None),
    ],
)
def test_a_named_proxy_says_the_address(forwarded: str, share: str | None) -> None:
    """The last one that no named proxy has; what stands before it may be made up by the sender."""
    assert address("10.1.2.3", x_forwarded_for=forwarded) == share


def test_a_named_proxy_without_the_header_has_no_share() -> None:
    """It stands for everybody."""
    assert address("10.1.2.3") is None


@pytest.mark.parametrize("setting", ["proxy.example", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.1;10.0.0.2"])
def test_a_wrong_setting_is_named(setting: str) -> None:
    """The error says which setting and why, before anything is served."""
    with pytest.raises(ConfigurationError) as raised:
        TrustedProxies(setting)
    assert "PLANT_INGRESS_TRUSTED_PROXIES" in str(raised.value)


def test_the_docstrings_are_right() -> None:
    """The examples in the module hold."""
    assert doctest.testmod(addresses).failed == 0
