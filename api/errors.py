"""The errors of the API for readers, apart from the answers to bad requests (those are problems)."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, PlantError


class ApiError(PlantError):
    """The API for readers can't work like this."""


class UnknownAccessToken(ApiError, CheckFailed):
    """There is no such token."""


class UnknownScope(ApiError, ConfigurationError):
    """There is no such scope."""


class UnreadableTenant(ApiError, ConfigurationError):
    """Rows that are folded from events belong to the default tenant, so a token of another one would read nothing."""


class UnreadableTokens(ApiError):
    """The tokens could not be read from the database in time."""
