"""Errors of asyncpg as Plant's own: which ones mean that the database can't be reached."""

from __future__ import annotations

import doctest

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

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


@pytest.mark.parametrize("message", ["", " ", None])
@pytest.mark.parametrize(
    "kind",
    [
        asyncpg.ConnectionDoesNotExistError,
        asyncpg.PostgresConnectionError,
        asyncpg.AdminShutdownError,
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
        asyncpg.QueryCanceledError,
        asyncpg.LockNotAvailableError,
        asyncpg.CheckViolationError,
        OSError,
    ],
)
def test_an_error_without_a_message_gives_a_whole_sentence(kind: type[Exception], message: str | None) -> None:
    """The kind of the error stands for its reason."""
    error = kind() if message is None else kind(message)
    translated = translate_error(error, "h:5432/d as u")
    assert translated is not None
    assert translated.why.removeprefix("h:5432/d as u: ") == f"{kind.__name__}."


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "the connection was lost."),
        ("connection was closed in the middle of operation", None),
        ("it was closed.", "the connection was lost: it was closed."),
    ],
)
def test_a_lost_connection_is_a_whole_sentence(message: str, why: str | None) -> None:
    """Whether or not the driver gives a reason, and whether or not that ends in a full stop."""
    lost = DBAPIError("SELECT 1", None, asyncpg.ConnectionDoesNotExistError(message), connection_invalidated=True)
    translated = translate_error(lost, "h")
    assert translated is not None
    assert translated.why == f"h: {why or f'the connection was lost: {message}.'}"
