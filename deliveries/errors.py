"""The errors of deliveries."""

from __future__ import annotations

from typing import ClassVar, Literal

from runtime.errors import CheckFailed, ConfigurationError, PlantError, Unreachable

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


class BadEndpoint(DeliveriesError):
    """An endpoint can't be like this."""

    exit_code: ClassVar[int] = 2


class EndpointRefused(BadEndpoint):
    """An endpoint's URL, or an address that its name resolves to, may not be connected to."""

    def __init__(self, reason: RefusalReason, why: str) -> None:
        super().__init__(why=why)
        self.reason: RefusalReason = reason


class EndpointUnresolved(DeliveriesError, Unreachable):
    """The endpoint's name can't be resolved, so its addresses can't be checked."""


class CustomHeadersRefused(BadEndpoint):
    """A header that a subscriber configured can't be sent."""


class EndpointFilterRefused(BadEndpoint):
    """An endpoint can't choose its events like this."""


class DeliveriesMisconfigured(DeliveriesError, ConfigurationError):
    """A setting of deliveries can't be used."""


class ConfigurationRefused(BadEndpoint):
    """An endpoint can't be configured like this."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why=why)
        self.field = field
        """The one of EndpointConfiguration that does not fit."""


class HandshakeRefused(BadEndpoint):
    """The receiver has not agreed to deliveries."""


class UnknownExample(BadEndpoint):
    """There is no example of this type."""


class EndpointTenantRefused(BadEndpoint):
    """Endpoints of this tenant can't be added."""


class UnknownEndpoint(DeliveriesError, CheckFailed):
    """There is no such endpoint."""


class UnknownDelivery(DeliveriesError, CheckFailed):
    """There is no such delivery."""

    def __init__(self, delivery_id: object) -> None:
        super().__init__(
            f"No delivery {delivery_id} is recorded.",
            why="It has no attempt yet, or is older than what is kept (PLANT_DELIVERIES_KEEP_DAYS), or was never made.",
            next_step="plant deliveries list --event <event id>",
        )


class UnknownRedrive(DeliveriesError, CheckFailed):
    """There is no such redrive."""


class NothingToRedrive(DeliveriesError, CheckFailed):
    """No delivery is to be sent again by now: look at the plan again."""


class UnknownDeliveries(DeliveriesError, CheckFailed):
    """It is not known what was delivered that long ago."""


class DeliveriesBehind(DeliveriesError, CheckFailed):
    """It can't be said what is missing."""


class SearchTooLarge(DeliveriesError, CheckFailed):
    """More is to be compared, or is missing, than one search over HTTP may take: choose a later time."""


class UnknownSearch(DeliveriesError, CheckFailed):
    """There is no such search."""


class SearchEnded(DeliveriesError):
    """The search was ended by another process: what was found here is not written down, and nothing is ordered."""


class TooManySearches(DeliveriesError, CheckFailed):
    """The tenant has as many searches that wait as it may have."""


class TooManyRedrives(DeliveriesError, CheckFailed):
    """The tenant has as many redrives that run as it may have."""


class TooManyEndpoints(DeliveriesError, CheckFailed):
    """The tenant has as many endpoints as it may add."""


class EndpointStateRefused(DeliveriesError, CheckFailed):
    """The endpoint's state does not allow this."""


class TooManyEndpointKeys(DeliveriesError, CheckFailed):
    """The endpoint has two keys of this scheme already: wait until the older one has expired."""


class ExampleNotAccepted(DeliveriesError, CheckFailed):
    """The endpoint did not accept the example."""
