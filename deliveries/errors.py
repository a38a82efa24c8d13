"""The errors of deliveries."""

from __future__ import annotations

from typing import Literal

from runtime.errors import ConfigurationError, PlantError

RefusalReason = Literal[
    "malformed",
    "scheme",
    "userinfo",
    "fragment",
    "percent_encoding",
    "odd_address",
    "hostname",
    "refused_hostname",
    "port",
    "path",
    "address",
]


class DeliveriesError(PlantError):
    """Deliveries can't work like this."""


class EndpointRefused(DeliveriesError):
    """An endpoint's URL, or an address that its name resolves to, may not be connected to."""

    def __init__(self, reason: RefusalReason, why: str) -> None:
        super().__init__(why=why)
        self.reason: RefusalReason = reason


class CustomHeadersRefused(DeliveriesError):
    """A header that a subscriber configured can't be sent."""


class DeliveriesMisconfigured(DeliveriesError, ConfigurationError):
    """A setting of deliveries can't be used."""
