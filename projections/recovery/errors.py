"""What can keep an operator from recovering a database."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, PlantError


class RecoveryRefused(ConfigurationError):
    """The database can't be recovered as it is."""


class RecoveryRunning(CheckFailed):
    """Somebody else writes the database while it is recovered."""


class RecoveryInterrupted(PlantError):
    """The recovery was interrupted; what is recovered is kept."""

    exit_code = 130


class HeadMismatch(CheckFailed):
    """The chains are not those whose heads were kept."""
