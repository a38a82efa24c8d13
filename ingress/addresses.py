"""Whose address a request comes from, where that can be known: the key of each address's share.

A proxy that is named (`PLANT_INGRESS_TRUSTED_PROXIES`) says it in `X-Forwarded-For`. A request that was forwarded by
anybody else has no address, and so no share: its peer may stand for everybody, and whatever the header says may be made
up.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from litestar.types import Scope

from runtime.errors import ConfigurationError
from server.shares import parsed_address, share_of

FORWARDED: Final = frozenset((b"x-forwarded-for", b"forwarded", b"via"))


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed."""

    def __init__(self, setting: str) -> None:
        """Read the setting: addresses and networks, separated by commas. Raises ConfigurationError."""
        try:
            self._networks = [ip_network(part.strip()) for part in setting.split(",") if part.strip()]
        except ValueError as error:
            raise ConfigurationError(
                "The setting PLANT_INGRESS_TRUSTED_PROXIES can't be used.",
                why=f"{error}.",
                next_step="PLANT_INGRESS_TRUSTED_PROXIES=10.0.0.0/8,192.0.2.7 plant ingress",
            ) from error

    def address_of(self, scope: Scope) -> str | None:
        """Return the address that a request comes from, None where it can't be known."""
        peer = parsed_address((scope.get("client") or ("", 0))[0])
        if peer is None:
            return None
        forwarded = [header for header in scope["headers"] if header[0] in FORWARDED]
        if not self._trusts(peer):
            return None if forwarded else share_of(peer)
        return self._nearest_stranger([value for name, value in forwarded if name == b"x-forwarded-for"])

    def _nearest_stranger(self, values: Sequence[bytes]) -> str | None:
        """Return the last address that a trusted proxy has seen: what stands before it may be made up."""
        for text in reversed(b",".join(values).decode("latin-1").split(",")):
            address = parsed_address(text.strip())
            if address is None or not self._trusts(address):
                return None if address is None else share_of(address)
        return None

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)
