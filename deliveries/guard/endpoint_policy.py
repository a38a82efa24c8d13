"""What an operator allows of endpoints' URLs and addresses: the settings `PLANT_DELIVERIES_…`, read once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from deliveries.errors import DeliveriesMisconfigured
from deliveries.guard.addresses import Address, Network, parse_networks
from runtime.servers import parse_port
from runtime.settings import Settings

SPECIAL_NAMES: Final = frozenset(
    {"alt", "arpa", "corp", "example", "home", "internal", "intranet", "invalid", "lan", "local", "localdomain",
     "localhost", "mail", "onion", "private", "test"}
)  # fmt: skip
"""Top-level names of private networks and special uses: RFC 6761, 6762, 7686, 8375, 9476, and ICANN's `internal`,
`corp`, `home` and `mail`, which are never delegated."""

NAME_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
NUMBER_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A host whose last label is like this is an IPv4 address, not a name."""

_Parsed = TypeVar("_Parsed")


class EndpointPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What endpoints' URLs may be. Names are lower-case A-labels, and stand for their subdomains too."""

    plain_http: bool = False
    ports: tuple[range, ...] = (range(443, 444), range(8443, 8444))
    allowed_names: frozenset[str] = frozenset()
    """Where there are some, only these; special names and names of one label among them. Then an address may stand in
    place of a name only where its network is allowed by name."""
    refused_names: frozenset[str] = frozenset()
    allowed_networks: tuple[Network, ...] = ()
    """Networks whose addresses may be connected to although they are in a refused range."""

    def allows_port(self, port: int) -> bool:
        """Return whether an endpoint may be at this port."""
        return any(port in ports for ports in self.ports)

    def allows_name(self, name: str) -> bool:
        """Return whether an endpoint may have this name, which has no dot at its end."""
        suffixes = _suffixes(name)
        if suffixes & self.refused_names:
            return False
        if self.allowed_names:
            return bool(suffixes & self.allowed_names)
        return "." in name and not suffixes & SPECIAL_NAMES

    def allows_literal(self, address: Address) -> bool:
        """Return whether an endpoint may have this address in place of a name, if the address may be connected to."""
        return not self.allowed_names or any(address in network for network in self.allowed_networks)


def make_endpoint_policy(settings: Settings) -> EndpointPolicy:
    """Return the policy of the settings. Raises DeliveriesMisconfigured naming the one that can't be used."""
    return EndpointPolicy(
        plain_http=settings.deliveries_schemes != "https",
        ports=_read("ports", settings.deliveries_ports, parse_ports),
        allowed_names=_read("allowed_names", settings.deliveries_allowed_names, _parse_names),
        refused_names=_read("refused_names", settings.deliveries_refused_names, _parse_names),
        allowed_networks=_read("allowed_networks", settings.deliveries_allowed_networks, parse_networks),
    )


def parse_ports(text: str) -> tuple[range, ...]:
    """Return the ports of a list: numbers, and ranges with both ends. Raises ValueError with one sentence.

    >>> parse_ports("443, 8000-8443")
    (range(443, 444), range(8000, 8444))
    """
    ports = []
    for part in (each.strip() for each in text.split(",") if each.strip()):
        first, _, last = part.partition("-")
        ports.append(range(parse_port(first.strip()), parse_port(last.strip() or first.strip()) + 1))
    if not all(ports) or not ports:
        raise ValueError("It names no port, or a range that ends before it begins.")
    return tuple(ports)


def _parse_names(text: str) -> frozenset[str]:
    names = frozenset(part.strip().lower().strip(".") for part in text.split(",") if part.strip())
    for name in names:
        labels = name.split(".")
        if NUMBER_LABEL.fullmatch(labels[-1]) or not all(NAME_LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"{name[:100]!r} is no host's name: write example.com for it and its subdomains.")
    return names


def _suffixes(name: str) -> set[str]:
    labels = name.split(".")
    return {".".join(labels[start:]) for start in range(len(labels))}


def _read(name: str, text: str, parse: Callable[[str], _Parsed]) -> _Parsed:
    try:
        return parse(text)
    except ValueError as error:
        raise DeliveriesMisconfigured(
            f"The setting PLANT_DELIVERIES_{name.upper()} can't be used.",
            why=str(error),
            next_step="plant settings    # shows where it comes from",
        ) from error
