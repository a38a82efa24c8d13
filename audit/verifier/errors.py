"""What an audit can say no to, and what keeps it from saying anything."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError


class ChainBroken(CheckFailed):
    """The stored log does not agree with its audit chain."""


class BadHeadsFile(ConfigurationError):
    """A file of kept chain heads can't be read; it should be what `plant audit head` printed."""


class LogUnreadable(ConfigurationError):
    """The log can't be read with this role, or is not there: the database may not be migrated."""
