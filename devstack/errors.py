"""What can go wrong with the local stack. Every message names the log file that has the details."""

from __future__ import annotations

import shlex
from pathlib import Path

from runtime.errors import PlantError, Unreachable


def tail(log: Path) -> str:
    """Return the command that shows a log's end; it can be pasted into a shell, whatever the folder's name."""
    return f"tail -50 {shlex.quote(str(log))}"


class StackError(PlantError):
    """The local stack could not do what was asked."""


class StartFailed(StackError):
    """A service of the local stack did not start."""

    exit_code = 4


class DownloadFailed(Unreachable):
    """The Kafka jars could not be fetched."""


class OtherVersion(StackError):
    """The data folder was made by another major version of Postgres."""

    exit_code = 2


class OtherBrokerCount(StackError):
    """The data folder was made by another number of brokers."""

    exit_code = 2
