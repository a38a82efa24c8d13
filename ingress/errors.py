"""The errors of ingress, apart from the answers to bad requests (those are problems.py)."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, PlantError


class IngressError(PlantError):
    """Ingress can't work like this."""


class UnknownKey(IngressError, CheckFailed):
    """There is no such key."""


class PublicKeyKnown(IngressError, CheckFailed):
    """This public key was registered before. A key is registered once, and a revoked one never comes back."""


class TooManyKeys(IngressError, CheckFailed):
    """The producer has as many v1a keys as a request may be checked against. Revoke one, or let one expire."""


class NoKeyToRotate(IngressError, CheckFailed):
    """The producer has no active key that a new one could take over from."""


class UnknownProducer(IngressError, CheckFailed):
    """No producer of this name has a key or a policy."""


class ProducerInUse(IngressError, CheckFailed):
    """Keys of the producer are neither revoked nor expired."""


class BadProducerName(IngressError, ConfigurationError):
    """A producer's name has 1 to 63 of a-z, 0-9, dot, underscore and dash, and begins with a letter or digit."""
