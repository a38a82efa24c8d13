"""Errors of the machine and of the database that are nobody's fault here: what they mean to the one who runs a command.

What none of these explains is unexpected, and a fault of Plant's.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from typing import Final

from runtime.errors import ConfigurationError, PlantError, Unreachable

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""The disk, or what stands for it, takes no more."""

UNUSABLE: Final = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENXIO,
    errno.ENODEV,
    errno.EBADF,
    errno.EINVAL,
    errno.ESPIPE,
)
"""A file or folder that was named can't be used as it is."""

READ_ONLY, SCHEMA_BEHIND, NOT_ALLOWED = ("25006",), ("42P01", "42703", "42883", "3F000"), ("42501",)


def explain(error: BaseException) -> PlantError | None:
    """Return the error to show instead of an unexpected one; None where it is one."""
    if isinstance(error, OSError):
        return _explain_file(error)
    # Without its driver there is no error of the database's; importing it takes long.
    return _explain_database(error) if "asyncpg" in sys.modules else None


def _explain_file(error: OSError) -> PlantError | None:
    why = f"{error.strerror or error}."
    if error.errno in FULL:
        name = error.filename or "The output"
        return Unreachable(f"{name} can't be written.", why=why, next_step="df -h")
    if error.errno == errno.EMFILE:
        return Unreachable("Too many files are open.", why=why, next_step="ulimit -n 65536")
    if error.errno not in UNUSABLE or not isinstance(error.filename, str | bytes) or not error.filename:
        return None
    name = os.fsdecode(error.filename)
    return ConfigurationError(f"{name} can't be used.", why=why, next_step=f"ls -ld {shlex.quote(name)}")


def _explain_database(error: BaseException) -> PlantError | None:
    from database.error_translation import driver_error, translate_unreachable
    from database.errors import DatabaseUnwritable, MissingPrivilege, SchemaBehind
    from database.sqlstates import RETRYABLE, is_one_of

    cause = driver_error(error)
    sqlstate = getattr(cause, "sqlstate", None)
    message = f"{(str(cause).splitlines() or [type(cause).__name__])[0].rstrip('.')}."
    if is_one_of(sqlstate, READ_ONLY):
        return DatabaseUnwritable(why=message, next_step="psql -c 'SHOW default_transaction_read_only'")
    if is_one_of(sqlstate, SCHEMA_BEHIND):
        return SchemaBehind(why=message, next_step="plant db upgrade")
    if is_one_of(sqlstate, NOT_ALLOWED):
        return MissingPrivilege(why=message, next_step="plant doctor")
    if is_one_of(sqlstate, RETRYABLE):
        return translate_unreachable(error, "The database") or Unreachable(
            "The database can't do it now.", why=message, next_step="plant doctor"
        )
    return None
