"""What an error of the driver means to Plant: one of its own errors, with what to do next."""

from __future__ import annotations

import re

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

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
from database.unreachable import driver_error, unreachable_because
from runtime.errors import PlantError

RUN_AGAIN = "await database.run(work)    # calls work anew after a conflict"


def translate_error(error: BaseException, where: str) -> PlantError | None:
    """The error to raise instead, `where` being the database's address without secrets; None: raise it as it is.

    What is said never holds a value of a row: only names of tables and constraints. Where the driver's own error holds
    one it is taken out, since a traceback shows that error too.
    """
    if isinstance(error, PlantError):
        return None
    if (conflict := _conflict(error)) is not None:
        return conflict
    if (refusal := _refusal(error)) is not None:
        return refusal
    if why := unreachable_because(error):
        return DatabaseUnreachable(why=f"{where}: {why}", next_step="plant status")
    return None


def _conflict(error: BaseException) -> TransactionConflict | StatementTimedOut | LockTimedOut | None:
    """What another time, or another moment, may not happen."""
    cause = driver_error(error)
    if isinstance(cause, asyncpg.SerializationError):
        return SerializationFailed(why=_sentence(cause), next_step=RUN_AGAIN)
    if isinstance(cause, asyncpg.DeadlockDetectedError):
        return Deadlocked(why=_sentence(cause), next_step=RUN_AGAIN)
    if isinstance(cause, asyncpg.QueryCanceledError):
        return StatementTimedOut(why=_sentence(cause), next_step="export PLANT_DATABASE_STATEMENT_TIMEOUT_SECONDS=…")
    if isinstance(cause, asyncpg.LockNotAvailableError):
        return LockTimedOut(why=_sentence(cause), next_step="psql -c 'SELECT * FROM pg_locks WHERE NOT granted'")
    return None


def _refusal(error: BaseException) -> ConstraintRefused | ValueRefused | RowRefused | None:
    """What the row itself is refused for."""
    cause = driver_error(error)
    if isinstance(cause, asyncpg.IntegrityConstraintViolationError):
        _silence(error)
        table = cause.table_name
        return ConstraintRefused(
            why=_constraint(cause), next_step=f"psql -c '\\d {table}'" if table else cause.hint or ""
        )
    if isinstance(cause, asyncpg.DataError):
        said = _value(cause)
        _silence(error, said)
        return ValueRefused(why=said, next_step="check what was sent against the column's type")
    if isinstance(cause, asyncpg.InsufficientPrivilegeError) and "row-level security" in str(cause):
        next_step = "begin the transaction with the governance_agent_id that the row has"
        return RowRefused(why=_sentence(cause), next_step=next_step)
    return None


def _constraint(cause: asyncpg.PostgresError) -> str:
    table, constraint = cause.table_name, cause.constraint_name
    if constraint:
        return f"{table or 'A row'} breaks {constraint}."
    if column := cause.column_name:
        return f"{table}.{column} must not be null."
    return _sentence(cause)


def _value(cause: asyncpg.DataError) -> str:
    """The error's kind in words, and which argument it is about; the server's words hold the value.

    >>> _value(asyncpg.DataError("invalid input for query argument $2: 'a word' (an integer is required)"))
    'Data, argument $2 (SQLSTATE 22000).'
    """
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(cause).__name__.removesuffix("Error")).capitalize()
    argument = re.match(r"invalid input for query argument (\$\d+):", str(cause.args[0]) if cause.args else "")
    return f"{kind}{f', argument {argument[1]}' if argument else ''} (SQLSTATE {cause.sqlstate})."


def _silence(error: BaseException, said: str = "") -> None:
    """Take values of rows out of the driver's error and SQLAlchemy's wrapping of it, which then say `said`."""
    for each in (driver_error(error), getattr(error, "orig", None)):
        if isinstance(each, asyncpg.PostgresError | AsyncAdapt_asyncpg_dbapi.Error):
            each.detail = None
            if said:
                each.args = (said,)


def _sentence(cause: BaseException) -> str:
    """The server's own words; its DETAIL, which may show values, is left out."""
    return f"{cause.args[0] if cause.args else type(cause).__name__}."
