"""The errors of an HTTP server's process, apart from the answers to bad requests (those are problems.py)."""

from __future__ import annotations

from runtime.errors import ConfigurationError, PlantError


class ServerError(PlantError):
    """The server can't work like this."""


class ReadyFileUnwritable(ServerError, ConfigurationError):
    """The ready file can't be written."""


class AddressInUse(ServerError, ConfigurationError):
    """The address can't be listened on."""


class ProcessEnded(ServerError):
    """One of several processes could not be started; it has said why."""
