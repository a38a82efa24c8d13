"""The IP addresses that a delivery may connect to. Pure: no name is resolved here.

Every row of IANA's two registries of special-purpose addresses is refused, reachable or not: no subscriber's server
stands there. So are multicast and, in IPv6, all that is not global unicast (`2000::/3`). An address that holds an IPv4
address is judged by that one too.

Sources, as they stood in July 2026:
https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry,
https://www.iana.org/assignments/ipv6-address-space, RFC 5771 (multicast), RFC 6052 (NAT64), RFC 5214 (ISATAP).

`ipaddress.is_global` has gaps. By it these are public: multicast, the former 6to4 relays (`192.88.99.0/24`), NAT64
with a private address in it, IPv4-compatible and IPv4-translated addresses (`::127.0.0.1`), `5f00::/16`,
`100:0:0:1::/64`, site-local addresses, and blocks that nobody has been given (`4000::/3`). So are, in older releases of
each version, 6to4, `64:ff9b:1::/48`, `3fff::/20` and parts of `192.0.0.0/24`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

IPV4_RANGES: Final = {
    IPv4Network(network): name
    for network, name in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by carriers (CGNAT)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "former 6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
}
"""Refused IPv4 addresses, and what they are for. The last row holds the broadcast address."""

MAPPED: Final = IPv6Network("::ffff:0:0/96")
NAT64: Final = IPv6Network("64:ff9b::/96")
NAT64_LOCAL: Final = IPv6Network("64:ff9b:1::/48")
NAT64_BITS: Final = 96
"""Of the prefix of a translator that reads the IPv4 address from the last 32 bits."""
TEREDO: Final = IPv6Network("2001::/32")
SIX_TO_FOUR: Final = IPv6Network("2002::/16")
_COMPATIBLE: Final = IPv6Network("::/96")
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")
_LAST_32_BITS: Final = (MAPPED, _COMPATIBLE, _TRANSLATED, NAT64, NAT64_LOCAL)
_ISATAP: Final = frozenset((0x0000_5EFE, 0x0200_5EFE))
"""Upper halves of an interface's id whose lower half is an IPv4 address: RFC 5214, 6.1."""

IPV6_RANGES: Final = {
    IPv6Network(network): name
    for network, name in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        (str(MAPPED), "IPv4-mapped"),
        (str(_TRANSLATED), "IPv4-translated"),
        (str(_COMPATIBLE), "IPv4-compatible"),
        (str(NAT64), "NAT64"),
        (str(NAT64_LOCAL), "NAT64"),
        ("100::/64", "discard"),
        ("100:0:0:1::/64", "dummy"),
        (str(TEREDO), "Teredo"),
        ("2001:2::/48", "benchmarking"),
        ("2001::/23", "protocol assignments"),
        ("2001:db8::/32", "documentation"),
        (str(SIX_TO_FOUR), "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
}
"""Refused IPv6 addresses, and what they are for; where one lies in another, the smaller comes first."""

GLOBAL_UNICAST: Final = IPv6Network("2000::/3")


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list with commas. Raises ValueError on one that can't be read or has host bits set, and
    on one of local NAT64 by which no address could be allowed.

    >>> parse_networks("10.1.0.0/16, ::1")
    (IPv4Network('10.1.0.0/16'), IPv6Network('::1/128'))
    """
    networks = tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    for network in networks:
        if isinstance(network, IPv6Network) and network.subnet_of(NAT64_LOCAL) and network.prefixlen < NAT64_BITS:
            raise ValueError(f"{network} is a translator's, which has {NAT64_BITS} bits: name each with all of them.")
    return networks


def refused_range(address: Address, allowed: Sequence[Network] = ()) -> str | None:
    """Return what the range is for that makes an address refused, None for one that may be connected to.

    An address in an allowed network passes, but the IPv4 address in it is judged by itself: it passes where it is
    public or in an allowed network of its own.

    >>> refused_range(IPv4Address("10.0.0.1")), refused_range(IPv4Address("8.8.8.8"))
    ('private', None)
    >>> refused_range(IPv6Address("64:ff9b::7f00:1"), [NAT64])
    'loopback, in NAT64'
    """
    own = _own_range(address, allowed)
    if own is not None or isinstance(address, IPv4Address):
        return own
    for embedded in embedded_addresses(address):
        inner = _own_range(embedded, allowed)
        if inner is not None:
            return f"{inner}, in {_range_name(address) or 'ISATAP'}"
    return None


def embedded_addresses(address: IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that packets to this address may end at.

    >>> [str(each) for each in embedded_addresses(IPv6Address("2002:a00:1::1"))]
    ['10.0.0.1']
    """
    number = int(address)
    if any(address in network for network in _LAST_32_BITS):
        yield IPv4Address(number & 0xFFFF_FFFF)
    elif address in SIX_TO_FOUR:
        yield IPv4Address(number >> 80 & 0xFFFF_FFFF)
    elif address in TEREDO:  # the server, and the client with its bits inverted: RFC 4380, 4
        yield IPv4Address(number >> 64 & 0xFFFF_FFFF)
        yield IPv4Address(number & 0xFFFF_FFFF ^ 0xFFFF_FFFF)
    elif number >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(number & 0xFFFF_FFFF)


def _own_range(address: Address, allowed: Sequence[Network]) -> str | None:
    return None if _is_allowed(address, allowed) else _range_name(address)


def _is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether a network of the list holds the address; for local NAT64 one of at least 96 bits.

    A translator with a shorter prefix reads the IPv4 address from other bits than the last 32: RFC 6052, 2.2.
    """
    shortest = NAT64_BITS if address in NAT64_LOCAL else 0
    return any(address in network for network in allowed if network.prefixlen >= shortest)


def _range_name(address: Address) -> str | None:
    if isinstance(address, IPv4Address):
        return next((name for network, name in IPV4_RANGES.items() if address in network), None)
    found = next((name for network, name in IPV6_RANGES.items() if address in network), None)
    return found or (None if address in GLOBAL_UNICAST else "reserved")
