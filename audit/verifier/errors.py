"""The errors of an audit: a broken chain, and what keeps a chain from being checked."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError


class ChainBroken(CheckFailed):
    """The stored log does not agree with its audit chain."""


class LogViewsAltered(CheckFailed):
    """Readers of the log query views that Plant did not make: they may see other records than those that are stored."""


class EntriesUnjudged(CheckFailed):
    """Some entries have a schema that this verifier does not know: they are neither good nor bad."""


class BadIdsFile(ConfigurationError):
    """A file of schema ids can't be read; it should be the one that `plant schemas register` writes."""


class BadHeadsFile(ConfigurationError):
    """A file of kept chain heads can't be read; it should be the output of `plant audit head`."""


class LogUnreadable(ConfigurationError):
    """The log can't be read with this role, or is not there: the database may not be migrated."""
