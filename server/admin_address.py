"""The address of a service's admin listener."""

from __future__ import annotations

from typing import Final

from runtime.errors import ConfigurationError
from runtime.servers import ServerAddress, parse_listener
from server.http_server import INGRESS

ADMIN_PORT_DISTANCE: Final = 10
"""From a service's port to its admin listener's, where no setting says otherwise."""


def admin_address(setting: str, port: int, *, service: str = INGRESS, usual_port: int = 8080) -> ServerAddress:
    """Return where the admin listener of a service at this port listens. Raises ConfigurationError.

    >>> str(admin_address("", 8080)), str(admin_address("", 0)), str(admin_address("0.0.0.0:9000", 8080))
    ('127.0.0.1:8090', '127.0.0.1:0', '0.0.0.0:9000')
    """
    if not setting:
        return ServerAddress("127.0.0.1", port + ADMIN_PORT_DISTANCE if port else 0)
    try:
        return parse_listener(setting)
    except ValueError as error:
        name = f"PLANT_{service.upper()}_ADMIN_ADDRESS"
        raise ConfigurationError(
            f"The setting {name} can't be used.",
            why=str(error),
            next_step=f"{name}=127.0.0.1:{usual_port + ADMIN_PORT_DISTANCE} plant {service}",
        ) from error
