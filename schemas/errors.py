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


class UnknownSchema(Undecodable):
    """The value's schema id may be one of a later release of Plant, so nothing can be judged of it here."""

    def __init__(self, schema_id: int, row: int = 0) -> None:
        self.schema_id = schema_id
        self.row = row
        """The index of its value, where it is one of a batch."""
        super().__init__(f"no schema has the id {schema_id}, but a later release may have it")


class ControlRecordRefused(Undecodable):
    """The value is a control record, which is no event: it is about the log, and no read model takes it."""

    def __init__(self, event_type: str) -> None:
        super().__init__(f"a control record, {event_type}, and no event")


class Unencodable(SchemaError):
    """The event breaks a limit of its type, so it would be poison."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(why=reason)


class InvalidEvent(SchemaError):
    """The JSON is not one event within the limits of its type.

    `pointer` is a JSON pointer to what does not fit (RFC 6901, as a URI fragment). It is None where the bytes are no
    JSON: `cause` then names the decoder's error, if there was one.
    """

    def __init__(self, detail: str, pointer: str | None = None, *, cause: str = "") -> None:
        self.detail = detail
        self.pointer = pointer
        self.cause = cause
        # The message stands here, since reading it from the docstring costs as much as reading the event.
        super().__init__("The JSON is not one event within the limits of its type.", why=self.reason)

    @property
    def reason(self) -> str:
        """The detail, and where it stands."""
        return self.detail if self.pointer is None else f"{self.detail} at {self.pointer}"


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
