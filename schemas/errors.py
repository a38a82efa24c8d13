"""What can go wrong between an event and its bytes."""

from __future__ import annotations

from runtime.errors import CheckFailed, PlantError, Unreachable


class SchemaError(PlantError):
    """A schema or a value that should follow one is not right."""


class Undecodable(SchemaError):
    """The value is not one event in a registered schema."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(why=reason)


class Unencodable(SchemaError):
    """The event breaks a limit of its type, so it would be poison."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(why=reason)


class UnsupportedSchema(SchemaError):
    """The schema breaks one of Plant's schema rules."""

    exit_code = 3

    def __init__(self, field: str, rule: str) -> None:
        self.field = field
        self.rule = rule
        super().__init__(why=f"{field}: {rule}.", next_step="plant schemas check")


class SchemaCheckFailed(CheckFailed, SchemaError):
    """The schemas did not pass their check."""


class RegistryUnreachable(Unreachable, SchemaError):
    """The schema registry does not answer."""
