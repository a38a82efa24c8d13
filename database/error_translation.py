"""The translator of asyncpg's errors, bare or wrapped by SQLAlchemy, into Plant's own."""

from __future__ import annotations

import re

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError

from database.errors import (
    ConstraintRefused,
    DatabaseUnreachable,
    Deadlocked,
    LockTimedOut,
    RowRefused,
    SerializationFailed,
    StatementTimedOut,
    TransactionConflict,
    ValueRefused,
)
from database.sqlstates import UNREACHABLE, is_one_of
from runtime.errors import PlantError

RUN_AGAIN = "await database.run(work)    # calls work again after a conflict"


def translate_error(error: BaseException, where: str) -> PlantError | None:
    """Return the error to raise instead; None: raise it as it is. `where` is the database's address without secrets.

    Its message holds names of tables and constraints and never a value of a row. A value in the driver's own error is
    taken out, since a traceback shows that error too.
    """
    if isinstance(error, PlantError):
        return None
    if (conflict := _conflict(error)) is not None:
        return conflict
    if (refused_row := _refusal(error)) is not None:
        return refused_row
    return translate_unreachable(error, where)


def translate_unreachable(error: BaseException, where: str) -> DatabaseUnreachable | None:
    """Return the error for a database that can't be reached; None when the error means something else."""
    why = _unreachable_because(error)
    return DatabaseUnreachable(why=f"{where}: {why}", next_step="plant status") if why else None


def driver_error(error: BaseException) -> BaseException:
    """Return asyncpg's error, out of SQLAlchemy's wrapping."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def _unreachable_because(error: BaseException) -> str | None:
    """Return one sentence on why the database can't be reached; None when the error means something else."""
    cause = driver_error(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return _lost(cause)
    if isinstance(cause, asyncpg.InterfaceError) and "closed" in str(cause):
        return _lost(cause)
    if isinstance(cause, asyncpg.InternalClientError) and "cannot switch to state" in str(cause):
        # The driver has read that the server ends the session, and not yet that the connection is closed.
        return "the connection was lost: the server has ended the session."
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there."
    if isinstance(cause, TimeoutError):
        return "no answer in time."
    if isinstance(cause, OSError) or is_one_of(getattr(cause, "sqlstate", None), UNREACHABLE):
        return sentence(cause)
    return None


def _lost(cause: BaseException) -> str:
    """Return a whole sentence, also where the driver gives no reason.

    >>> _lost(asyncpg.ConnectionDoesNotExistError("")), _lost(asyncpg.ConnectionDoesNotExistError("it was closed."))
    ('the connection was lost.', 'the connection was lost: it was closed.')
    """
    reason = _text(cause)
    return f"the connection was lost: {reason}." if reason else "the connection was lost."


def _conflict(error: BaseException) -> TransactionConflict | StatementTimedOut | LockTimedOut | None:
    """Return the error for a failure that another attempt may not meet."""
    cause = driver_error(error)
    if isinstance(cause, asyncpg.SerializationError):
        return SerializationFailed(why=sentence(cause), next_step=RUN_AGAIN)
    if isinstance(cause, asyncpg.DeadlockDetectedError):
        return Deadlocked(why=sentence(cause), next_step=RUN_AGAIN)
    if isinstance(cause, asyncpg.QueryCanceledError):
        return StatementTimedOut(why=sentence(cause), next_step="export PLANT_DATABASE_STATEMENT_TIMEOUT_SECONDS=…")
    if isinstance(cause, asyncpg.LockNotAvailableError):
        return LockTimedOut(why=sentence(cause), next_step="psql -c 'SELECT * FROM pg_locks WHERE NOT granted'")
    return None


def _refusal(error: BaseException) -> ConstraintRefused | ValueRefused | RowRefused | None:
    """Return the error for a row that is refused."""
    cause = driver_error(error)
    if isinstance(cause, asyncpg.IntegrityConstraintViolationError):
        _remove_values(error)
        table = cause.table_name
        return ConstraintRefused(
            why=_constraint(cause), next_step=f"psql -c '\\d {table}'" if table else cause.hint or ""
        )
    if isinstance(cause, asyncpg.DataError):
        why = _value(cause)
        _remove_values(error, why)
        return ValueRefused(why=why, next_step="check what was sent against the column's type")
    if isinstance(cause, asyncpg.InsufficientPrivilegeError) and "row-level security" in str(cause):
        next_step = "begin the transaction with the tenant that the row has"
        return RowRefused(why=sentence(cause), next_step=next_step)
    return None


def _constraint(cause: asyncpg.PostgresError) -> str:
    table, constraint = cause.table_name, cause.constraint_name
    if constraint:
        return f"{table or 'A row'} breaks {constraint}."
    if column := cause.column_name:
        return f"{table}.{column} must not be null."
    return sentence(cause)


def _value(cause: asyncpg.DataError) -> str:
    """Return the error's kind in words, and the argument that it is about; the server's own text holds the value.

    >>> _value(asyncpg.DataError("invalid input for query argument $2: 'a word' (an integer is required)"))
    'Data, argument $2 (SQLSTATE 22000).'
    """
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(cause).__name__.removesuffix("Error")).capitalize()
    argument = re.match(r"invalid input for query argument (\$\d+):", str(cause.args[0]) if cause.args else "")
    return f"{kind}{f', argument {argument[1]}' if argument else ''} (SQLSTATE {cause.sqlstate})."


def _remove_values(error: BaseException, message: str = "") -> None:
    """Take values of rows out of the driver's error and SQLAlchemy's wrapping of it; `message` replaces theirs."""
    for each in (driver_error(error), getattr(error, "orig", None)):
        if isinstance(each, asyncpg.PostgresError | AsyncAdapt_asyncpg_dbapi.Error):
            each.detail = None
            if message:
                each.args = (message,)


def sentence(cause: BaseException) -> str:
    """Return the server's message without its DETAIL, which may show values."""
    return f"{_text(cause) or type(cause).__name__}."


def _text(cause: BaseException) -> str:
    """Return the message without white space and the full stop at its end; empty where there is none."""
    if isinstance(cause, OSError) and len(cause.args) > 1:
        return str(cause)
    return str(cause.args[0] if cause.args else "").strip().rstrip(".")
