"""What readers are told of errors: what the database says is a problem that says when to ask again, and no 500."""

from __future__ import annotations

import asyncpg
import pytest

from api.failures import read_problem
from database.errors import (
    DatabaseClosed,
    DatabaseUnreachable,
    LockTimedOut,
    PoolExhausted,
    StatementTimedOut,
    TransactionConflict,
    ValueRefused,
)
from entities.errors import SearchRefused
from server.problems import Problem


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StatementTimedOut(), "query-timeout"),
        (PoolExhausted(), "overloaded"),
        (LockTimedOut(), "database-unavailable"),
        (TransactionConflict(), "database-unavailable"),
        (DatabaseClosed(), "database-unavailable"),
        (DatabaseUnreachable(), "database-unavailable"),
        (asyncpg.InterfaceError("closed"), "database-unavailable"),
        (asyncpg.AdminShutdownError("restart"), "database-unavailable"),
        (asyncpg.UndefinedTableError("none"), "starting"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else each,
)
def test_what_may_work_later_is_503_with_a_time(error: Exception, kind: str) -> None:
    """The reader learns nothing of the database, and when to ask again."""
    found = read_problem(error)
    assert found is not None
    assert (found.kind, found.status, found.headers) == (kind, 503, ((b"retry-after", b"1"),))


def test_what_the_reader_can_mend_is_400() -> None:
    """A search or a value that is refused."""
    for error in (SearchRefused(why="Too long."), ValueRefused()):
        found = read_problem(error)
        assert found is not None
        assert (found.kind, found.status) == ("parameter", 400)


def test_any_other_error_is_a_fault_of_ours() -> None:
    """It has no problem here, and a problem is its own."""
    assert read_problem(ZeroDivisionError()) is None
    assert read_problem(asyncpg.DivisionByZeroError("x")) is None
    own = Problem("scope")
    assert read_problem(own) is own
