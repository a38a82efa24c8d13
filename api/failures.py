"""What a reader is told of an error of the database or of a wait: each has a problem, and none is a 500."""

from __future__ import annotations

from typing import Final

import asyncpg

from database.error_translation import driver_error
from database.errors import (
    DatabaseClosed,
    LockTimedOut,
    PoolExhausted,
    StatementTimedOut,
    TransactionConflict,
    ValueRefused,
)
from database.sqlstates import RETRYABLE, UNKNOWN_NAME, is_one_of
from entities.errors import SearchRefused
from projections.checkpoint_poller import NotCaughtUp
from runtime.errors import Unreachable
from server.problems import Problem, retry_after

SOON_SECONDS: Final = 1


def read_problem(error: BaseException) -> Problem | None:
    """Return the problem to answer with; None where the error is a fault of Plant's."""
    again = (retry_after(SOON_SECONDS),)
    match error:
        case Problem():
            return error
        case NotCaughtUp():
            return _not_caught_up(error)
        case StatementTimedOut():
            detail = "Ask for less: another filter, a shorter range, a smaller page."
            return Problem("query-timeout", detail, headers=again)
        case PoolExhausted():
            return Problem("overloaded", "Many queries are under way.", headers=again)
        case LockTimedOut() | TransactionConflict() | DatabaseClosed() | Unreachable():
            return Problem("database-unavailable", headers=again, reason=str(error))
        case SearchRefused():
            return Problem("parameter", error.why)
        case ValueRefused():
            return Problem("parameter", "A value is beyond what the database can compare.")
    sqlstate = getattr(driver_error(error), "sqlstate", None)
    if is_one_of(sqlstate, UNKNOWN_NAME):
        return Problem("starting", "The read model is not installed yet.", headers=again, reason=str(error))
    if isinstance(error, asyncpg.InterfaceError) or is_one_of(sqlstate, RETRYABLE):
        return Problem("database-unavailable", headers=again, reason=str(error))
    return None


def _not_caught_up(error: NotCaughtUp) -> Problem:
    missing = [
        {"topic": each.topic, "partition": each.partition, "at_least": each.offset, "next_offset": next_offset}
        for each, next_offset in error.missing
    ]
    return Problem(
        "not-caught-up",
        f"{error.what} Ask again, or without `at-least` for what there is.",
        headers=(retry_after(SOON_SECONDS),),
        members={"read_model": error.model, "positions": missing},
        reason=error.what,
    )
