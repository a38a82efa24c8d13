"""Errors of asyncpg as Plant's own: which ones mean that the database can't be reached."""

from __future__ import annotations

import doctest

import asyncpg
import pytest

from database import error_translation, sqlstates
from database.error_translation import translate_error
from database.errors import ConstraintRefused, DatabaseUnreachable, Deadlocked, LockTimedOut, StatementTimedOut
from runtime.errors import PlantError


def test_its_examples_are_right() -> None:
    """What the docstrings show is what the functions return."""
    assert [doctest.testmod(module).failed for module in (error_translation, sqlstates)] == [0, 0]


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route"),
        ConnectionRefusedError(),
        TimeoutError(),
        asyncpg.PostgresConnectionError("x"),
        asyncpg.ConnectionDoesNotExistError("x"),
        asyncpg.InvalidPasswordError("x"),
        asyncpg.InvalidAuthorizationSpecificationError("x"),
        asyncpg.InvalidCatalogNameError("x"),
        asyncpg.CannotConnectNowError("x"),
        asyncpg.AdminShutdownError("x"),
        asyncpg.CrashShutdownError("x"),
        asyncpg.TooManyConnectionsError("x"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
    ],
)
def test_a_lost_or_refused_session_is_unreachable(error: Exception) -> None:
    """Network errors, refused log-ins and ended sessions are one error, with the address and exit code 4."""
    translated = translate_error(error, "h:5432/d as u")
    assert type(translated) is DatabaseUnreachable
    assert translated.why.startswith("h:5432/d as u: ")
    assert (translated.exit_code, translated.next_step) == (4, "plant status")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.QueryCanceledError("x"), StatementTimedOut),
        (asyncpg.LockNotAvailableError("x"), LockTimedOut),
        (asyncpg.DeadlockDetectedError("x"), Deadlocked),
        (asyncpg.UniqueViolationError("x"), ConstraintRefused),
        (asyncpg.UndefinedTableError("x"), type(None)),
        (asyncpg.OutOfMemoryError("x"), type(None)),
        (asyncpg.InterfaceError("another operation is in progress"), type(None)),
        (ValueError("x"), type(None)),
        (PlantError("x"), type(None)),
    ],
)
def test_other_errors_are_not_unreachable(error: Exception, expected: type) -> None:
    """A statement that fails in a session that goes on has another error, or its own."""
    assert type(translate_error(error, "h")) is expected
