"""Postgres's SQLSTATE codes on which Plant acts: one table, whichever driver reports them.

An entry is a whole code, or a class: its first two characters. All codes are listed at
https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

from typing import Final

CONNECTION: Final = ("08000", "08001", "08003", "08004", "08006", "08007")
"""The connection failed. Not the whole class: 08P01, a protocol violation, is a defect of a client, unless it ends the
session, as pgbouncer does for reasons of its own."""

UNREACHABLE: Final = (*CONNECTION, "28", "3D000", "53300", "57P01", "57P02", "57P03")
"""The session can't be opened, or the server has ended it: connection lost, login refused, database missing, too many
connections, shutdown, crash, start-up."""

RETRYABLE: Final = (
    *CONNECTION, "25006", "25P02", "25P03", "25P04", "40", "53", "55006", "55P03", "57", "58", "XX"
)  # fmt: skip
"""The same statement may work later, in a new session at the latest: connection, a transaction that has failed or timed
out, a server that is read-only for now, conflict, resources, locks, operator intervention, input and output, internal
error."""

ENDS_STATEMENT: Final = ("53400", "57014", "58", "XX")
"""Postgres ended a statement and the session goes on: a limit, a timeout, a file that can't be read, an internal error.
It may be for the statement, or for all that the server had to do."""

LOCK_NOT_AVAILABLE: Final = "55P03"
"""A lock was not given within `lock_timeout`."""

SESSION_ENDS: Final = ("FATAL", "PANIC")
"""Severities with which the server ends a session, whatever the code."""

DATA_EXCEPTION: Final = ("22",)
"""A value does not fit: the message may quote it."""

DATA: Final = (*DATA_EXCEPTION, "23")
"""The values of a row are refused: a data exception, or an integrity constraint."""

INSUFFICIENT_PRIVILEGE: Final = "42501"

UNKNOWN_NAME: Final = ("42P01", "42703")
"""A statement names a table or a column that is not there."""

FENCED: Final = "PL001"
"""Plant's own: the database function `lock_partition` raises it where the fence is gone."""

OUTDATED: Final = "PL002"
"""Plant's own: raised at a worker that is older than the database."""

RANGE_REFUSED: Final = "PL003"
"""Plant's own: the log has no range for a record behind a gap, and enough empty ones ahead."""


def is_one_of(sqlstate: str | None, codes: tuple[str, ...]) -> bool:
    """Return whether a SQLSTATE is one of these codes, or in one of these classes.

    >>> is_one_of("57014", RETRYABLE), is_one_of("57014", UNREACHABLE), is_one_of(None, DATA)
    (True, False, False)
    """
    return (sqlstate or "").startswith(codes)
