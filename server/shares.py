"""Shares: the addresses that count as one peer, whose connections and bytes are counted together."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

IPV6_PREFIX_BITS: Final = 64
"""A network of this size is one address: whoever has one has all of it."""


def share_of_host(host: str) -> str:
    """Return the share that a socket's address belongs to; text that is no address has one of its own.

    >>> share_of_host("192.0.2.7"), share_of_host("2001:db8::1:2"), share_of_host("")
    ('192.0.2.7', '2001:db8::/64', '')
    """
    if ":" not in host:
        return host
    address = parsed_address(host)
    return host if address is None else share_of(address)


def parsed_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a text is, None where it is none. One of IPv4 in IPv6 is that of IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def share_of(address: IPv4Address | IPv6Address) -> str:
    """Return the name of an address's share.

    >>> share_of(ip_address("192.0.2.7")), share_of(ip_address("2001:db8::1:2"))
    ('192.0.2.7', '2001:db8::/64')
    """
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, IPV6_PREFIX_BITS), strict=False))
