"""What can go wrong on the way in, apart from the answers to bad requests (those are problems.py)."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, PlantError


class IngressError(PlantError):
    """The way in can't work like this."""


class MasterKeyUnusable(IngressError, ConfigurationError):
    """The master key is missing or is not 32 bytes in base64."""


class KeyUnreadable(IngressError):
    """A stored key can't be decrypted: it was written under another master key, or changed since."""


class UnknownKey(IngressError, CheckFailed):
    """There is no such key."""


class BadProducerName(IngressError, ConfigurationError):
    """A producer's name has 1 to 63 of a-z, 0-9, dot, underscore and dash, and begins with a letter or digit."""


class ReadyFileUnwritable(IngressError, ConfigurationError):
    """The ready file can't be written."""


class AddressInUse(IngressError, ConfigurationError):
    """The address can't be listened on."""
