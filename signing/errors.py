"""The errors of keys and of the master key that protects them."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, PlantError


class SigningError(PlantError):
    """Signing can't work like this."""


class MasterKeyUnusable(SigningError, ConfigurationError):
    """The master key is missing or is not 32 bytes in base64."""


class SecretUnreadable(SigningError):
    """A stored secret can't be decrypted: it was written under another master key, or changed since."""


class OtherMasterKey(SigningError, CheckFailed):
    """PLANT_MASTER_KEY is not the master key that this database's secrets are encrypted under."""
