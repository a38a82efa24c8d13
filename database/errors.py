"""Errors between Plant and its database."""

from __future__ import annotations

from typing import ClassVar

from runtime.errors import CheckFailed, ConfigurationError, PlantError, Unreachable


class DatabaseUnreachable(Unreachable):
    """The database does not answer."""


class DatabaseUnwritable(Unreachable):
    """The database takes no writes now."""


class MissingPrivilege(ConfigurationError):
    """This process is connected to the database with fewer rights than it needs."""


class BadDatabaseAddress(ConfigurationError):
    """A database address is not a postgresql:// URL."""


class TooMuchPrivilege(ConfigurationError):
    """This process is connected to the database with more rights than it may have."""


class SchemaBehind(CheckFailed):
    """The database's schema is not the one this version of Plant needs."""


class MigrationLocked(Unreachable):
    """Something holds a lock that the migration needs."""


class MigrationRefused(CheckFailed):
    """What the database holds stands in the way of a migration, which changed nothing."""


class RolesMissing(ConfigurationError):
    """The database's roles do not exist yet; an administrator makes them once for each cluster."""


class ExtensionMissing(ConfigurationError):
    """The database has no vector extension yet; an administrator adds it once for each database."""


class UnknownRevision(ConfigurationError):
    """There is no such revision of the schema."""


class DatabaseClosed(PlantError):
    """This process is closing its connections to the database; it takes no more work."""


class PoolExhausted(Unreachable):
    """No connection to the database became free in time."""


class StatementTimedOut(Unreachable):
    """The database stopped a statement that took too long, or that an operator cancelled."""


class LockTimedOut(Unreachable):
    """Another transaction kept locked what this one needs."""


class TransactionConflict(PlantError):
    """The transaction got into another one's way and was rolled back; it can be tried again."""

    reason: ClassVar[str]
    """As metrics name it."""


class SerializationFailed(TransactionConflict):
    """Another transaction changed what this one had read; it was rolled back and can be tried again."""

    reason = "serialization"


class Deadlocked(TransactionConflict):
    """Two transactions waited for each other; this one was rolled back and can be tried again."""

    reason = "deadlock"


class TooContended(Unreachable):
    """A transaction was tried again and again, and others kept getting in its way."""


class TransactionAborted(PlantError):
    """Nothing was committed: a statement of the transaction had failed, and the block went on as if it had not."""

    def __init__(self) -> None:
        super().__init__(
            why="After an error Postgres rolls back the whole transaction, whatever comes next.",
            next_step="async with connection.begin_nested():    # around a statement that may fail",
        )


class TransactionEnded(PlantError):
    """The block's transaction was committed or rolled back inside the block; nothing more can be done in it."""

    def __init__(self) -> None:
        super().__init__(
            why="A new one would not know its tenant.",
            next_step="async with database.transaction(…):    # another block for what comes after",
        )


class ConstraintRefused(PlantError):
    """The database refused a row that breaks a constraint."""


class ValueRefused(PlantError):
    """The database can't take a value as the type of its column."""


class RowRefused(PlantError):
    """The database refused a row of another tenant than the transaction's."""
