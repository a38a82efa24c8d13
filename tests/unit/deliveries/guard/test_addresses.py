"""Which IP addresses may be connected to."""

from __future__ import annotations

import doctest
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.guard import addresses
from deliveries.guard.addresses import (
    IPV4_RANGES,
    IPV6_RANGES,
    Network,
    embedded_addresses,
    parse_networks,
    refused_range,
)

REFUSED = {
    "0.0.0.0": "unspecified", "0.255.255.255": "unspecified", "10.0.0.0": "private", "10.255.255.255": "private",
    "100.64.0.0": "shared by carriers (CGNAT)", "100.127.255.255": "shared by carriers (CGNAT)",
    "100.100.100.200": "shared by carriers (CGNAT)", "127.0.0.1": "loopback", "127.1.2.3": "loopback",
    "127.255.255.255": "loopback", "169.254.0.1": "link-local", "169.254.169.254": "link-local",
    "169.254.170.2": "link-local", "172.16.0.1": "private", "172.31.255.255": "private",
    "192.0.0.1": "protocol assignments", "192.0.0.9": "protocol assignments", "192.0.0.171": "protocol assignments",
    "192.0.0.192": "protocol assignments", "192.0.2.1": "documentation", "192.31.196.1": "AS112", "192.52.193.1": "AMT",
    "192.88.99.1": "former 6to4 relays", "192.88.99.2": "former 6to4 relays", "192.168.0.1": "private",
    "192.168.255.255": "private", "192.175.48.1": "AS112", "198.18.0.1": "benchmarking",
    "198.19.255.255": "benchmarking", "198.51.100.1": "documentation", "203.0.113.255": "documentation",
    "224.0.0.1": "multicast", "239.255.255.255": "multicast", "240.0.0.1": "reserved", "255.255.255.255": "reserved",
    "::": "unspecified", "::1": "loopback", "::2": "IPv4-compatible", "::127.0.0.1": "IPv4-compatible",
    "::8.8.8.8": "IPv4-compatible", "::ffff:127.0.0.1": "IPv4-mapped", "::ffff:10.0.0.1": "IPv4-mapped",
    "::ffff:169.254.169.254": "IPv4-mapped", "::ffff:8.8.8.8": "IPv4-mapped", "::ffff:0:127.0.0.1": "IPv4-translated",
    "64:ff9b::127.0.0.1": "NAT64", "64:ff9b::8.8.8.8": "NAT64", "64:ff9b:1::10.0.0.1": "NAT64", "100::1": "discard",
    "100:0:0:1::1": "dummy", "200::1": "reserved", "2001::1": "Teredo",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "Teredo", "2001:1::1": "protocol assignments", "2001:2::1": "benchmarking",
    "2001:3::1": "protocol assignments", "2001:4:112::1": "protocol assignments", "2001:10::1": "protocol assignments",
    "2001:20::1": "protocol assignments", "2001:30::1": "protocol assignments", "2001:db8::1": "documentation",
    "2002::1": "6to4", "2002:7f00:1::1": "6to4", "2002:808:808::1": "6to4", "2620:4f:8000::1": "AS112",
    "3fff::1": "documentation", "3fff:fff::1": "documentation", "4000::1": "reserved", "5f00::1": "segment routing",
    "8000::1": "reserved", "fc00::1": "unique local", "fd00:ec2::254": "unique local", "fdff::1": "unique local",
    "fe80::1": "link-local", "febf::1": "link-local", "fec0::1": "site-local", "feff::1": "site-local",
    "ff02::1": "multicast", "ff0e::1": "multicast", "2a00:1450::5efe:10.0.0.1": "private, in ISATAP",
    "2a00:1450::200:5efe:127.0.0.1": "loopback, in ISATAP",
}  # fmt: skip
PUBLIC = (
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0",
    "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255",
    "203.0.112.255", "203.0.114.0", "223.255.255.255", "2001:200::1", "2001:4860:4860::8888", "2001:db7:ffff::1",
    "2003::1", "2606:4700:4700::1111", "2620:4f:7fff::1", "2a00:1450:4001:81a::200e", "2a00:1450::5efe:8.8.8.8",
    "3ffe::1", "3fff:1000::1",
)  # fmt: skip
"""The neighbours of each range, and some that are in use."""
GAPS = (
    "224.0.0.1", "239.255.255.255", "192.88.99.1", "64:ff9b::127.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "5f00::1",
    "100:0:0:1::1", "fec0::1", "ff0e::1", "4000::1",
)  # fmt: skip


@pytest.mark.parametrize(("text", "name"), REFUSED.items())
def test_an_address_of_a_special_range_is_refused(text: str, name: str) -> None:
    """Each range of the registries is refused up to its edges, with the range's name."""
    assert refused_range(ip_address(text)) == name


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_passes(text: str) -> None:
    """The addresses next to each range are not refused with it."""
    assert refused_range(ip_address(text)) is None


@pytest.mark.parametrize("text", GAPS)
def test_a_gap_of_the_standard_library_is_closed(text: str) -> None:
    """An address that `is_global` takes for public, in every Python that we run on, is refused."""
    assert ip_address(text).is_global
    assert refused_range(ip_address(text)) is not None


def test_there_are_enough_addresses() -> None:
    """The set of addresses covers every range, and has at least eighty of them."""
    assert len(REFUSED) + len(PUBLIC) >= 80
    for network in (*IPV4_RANGES, *IPV6_RANGES):
        assert any(ip_address(text) in network for text in REFUSED), network


@pytest.mark.parametrize("network", [*IPV4_RANGES, *IPV6_RANGES], ids=str)
@given(data=st.data())
def test_every_address_of_a_range_is_refused(network: Network, data: st.DataObject) -> None:
    """No address inside a range passes, whichever it is."""
    offset = data.draw(st.integers(0, network.num_addresses - 1))
    assert refused_range(network.network_address + offset) is not None


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_embedded_address_is_found(inner: IPv4Address) -> None:
    """The IPv4 address is read from where each way of embedding has it."""
    number = int(inner)
    for base in ("::", "::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "::ffff:0:0:0"):
        assert list(embedded_addresses(IPv6Address(int(IPv6Address(base)) + number))) == [inner]
    assert list(embedded_addresses(IPv6Address(0x2002 << 112 | number << 80 | 1))) == [inner]
    assert list(embedded_addresses(IPv6Address(0x2001 << 112 | number << 64 | number ^ 0xFFFF_FFFF))) == [inner] * 2


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.sampled_from(["::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/96"]))
def test_a_listed_translation_lets_in_no_private_address(inner: IPv4Address, text: str) -> None:
    """Listing a network whose addresses hold IPv4 addresses allows just those that hold an allowed one."""
    network = IPv6Network(text)
    outer = IPv6Address(int(network.network_address) + int(inner))
    assert (refused_range(outer, [network]) is None) == (refused_range(inner) is None)
    assert refused_range(outer, [network, ip_network(f"{inner}/32")]) is None


def test_a_listed_network_passes_and_its_neighbours_do_not() -> None:
    """The allow list opens its own addresses only, of both versions."""
    allowed = parse_networks(" 10.1.0.0/16, fd00:1::/32,127.0.0.1 ")
    for text in ("10.1.255.255", "fd00:1::1", "127.0.0.1"):
        assert refused_range(ip_address(text), allowed) is None
    for text in ("10.2.0.0", "fd00:2::1", "127.0.0.2", "::1", "::ffff:10.1.0.1", "64:ff9b::10.1.0.1"):
        assert refused_range(ip_address(text), allowed) is not None


def test_the_local_translation_is_listed_by_96_bits() -> None:
    """A shorter prefix of local NAT64 allows nothing: its IPv4 address may be in other bits than the last 32."""
    hidden = IPv6Address("64:ff9b:1:7f00:0:100:808:808")  # 127.0.0.1 by a prefix of 48 bits, 8.8.8.8 by one of 96
    assert refused_range(hidden, [IPv6Network("64:ff9b:1::/48"), IPv6Network("::/0")]) == "NAT64"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0.0/8;::1"])
def test_a_list_of_networks_that_can_not_be_read_is_refused(text: str) -> None:
    """A network with host bits set may be a mistyped one, and so it is an error."""
    with pytest.raises(ValueError, match=r"host bits|IPv4 or IPv6"):
        parse_networks(text)


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(addresses).failed == 0
