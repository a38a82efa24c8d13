"""What goes wrong between Plant and its database, on purpose."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, Unreachable


class DatabaseUnreachable(Unreachable):
    """The database does not answer."""


class BadDatabaseAddress(ConfigurationError):
    """A database address is not a postgresql:// URL."""


class TooMuchPrivilege(ConfigurationError):
    """This process is connected to the database with more rights than it may have."""


class SchemaBehind(CheckFailed):
    """The database's schema is not the one this version of Plant needs."""


class MigrationLocked(Unreachable):
    """Something holds a lock that the migration needs."""


class RolesMissing(ConfigurationError):
    """The database's roles do not exist yet; an administrator makes them once a cluster."""
