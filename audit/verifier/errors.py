"""What an audit can say no to, and what keeps it from saying anything."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, Unreachable


class ChainBroken(CheckFailed):
    """The stored log does not agree with its audit chain."""


class LogUnreachable(Unreachable):
    """The database with the log does not answer."""


class BadHeadsFile(ConfigurationError):
    """A file of kept chain heads can't be read; it should be what `plant audit head` printed."""


class LogUnreadable(ConfigurationError):
    """The log can't be read with this role, or is not there: the database may not be migrated."""
