"""What errors of the database driver mean to a worker."""

from __future__ import annotations

import pytest
from adbc_driver_manager import AdbcStatusCode, OperationalError

from database.errors import DatabaseUnreachable
from projections.session import (
    DataRefused,
    NameUnknown,
    ProjectionBroken,
    StatementEnded,
    TableLocked,
    WorkerOutdated,
    sql_literal,
    translate_adbc_error,
)
from streams.errors import LogRefused, OwnershipLost

MESSAGE = "[libpq] Failed to execute query 'SELECT 1': ERROR:  it failed\nLINE 1: an event's name"


def refused(
    sqlstate: str | None, message: str = MESSAGE, status: AdbcStatusCode = AdbcStatusCode.IO, **fields: str
) -> OperationalError:
    details = [(name.encode(), value.encode()) for name, value in fields.items()]
    return OperationalError(message, status_code=status, sqlstate=sqlstate, details=details)


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        (None, DatabaseUnreachable),
        ("08006", DatabaseUnreachable),
        ("25P02", DatabaseUnreachable),
        ("40P01", DatabaseUnreachable),
        ("53300", DatabaseUnreachable),
        ("55P03", TableLocked),
        ("57014", StatementEnded),
        ("57P01", DatabaseUnreachable),
        ("58030", StatementEnded),
        ("53400", StatementEnded),
        ("53100", DatabaseUnreachable),
        ("XX000", StatementEnded),
        ("XX002", StatementEnded),
        ("25006", DatabaseUnreachable),
        ("25001", ProjectionBroken),
        ("55000", ProjectionBroken),
        ("08P01", ProjectionBroken),
        ("22003", DataRefused),
        ("23505", DataRefused),
        ("PL001", OwnershipLost),
        ("PL002", WorkerOutdated),
        ("42501", LogRefused),
        ("42P01", NameUnknown),
        ("0A000", ProjectionBroken),
    ],
)
def test_each_code_has_its_error(sqlstate: str | None, expected: type[Exception]) -> None:
    """To try again, to look for the row, to acquire the partition again, or a named stop."""
    assert type(translate_adbc_error(refused(sqlstate))) is expected


@pytest.mark.parametrize("status", AdbcStatusCode)
def test_without_a_code_only_a_lost_connection_is_tried_again(status: AdbcStatusCode) -> None:
    """What the driver can't do by itself it can't do the next time either: a type it does not know, a table."""
    lost = {AdbcStatusCode.IO, AdbcStatusCode.TIMEOUT, AdbcStatusCode.CANCELLED}
    expected = DatabaseUnreachable if status in lost else ProjectionBroken
    assert type(translate_adbc_error(refused(None, status=status))) is expected


@pytest.mark.parametrize("severity", ["FATAL", "PANIC"])
def test_a_session_that_the_server_ends_is_tried_again(severity: str) -> None:
    """pgbouncer ends sessions with a code that means a defect where a statement is refused with it."""
    for code in ("08P01", "57014", "XX000"):
        error = refused(code, PG_DIAG_SEVERITY_NONLOCALIZED=severity)
        assert type(translate_adbc_error(error)) is DatabaseUnreachable


@pytest.mark.parametrize("sqlstate", [None, "57P01", "23505", "42601", "PL001", "42501"])
@pytest.mark.parametrize("message", ["", "\n", " ", "': "])
def test_an_error_without_words_has_a_meaning(sqlstate: str | None, message: str) -> None:
    """A driver that says nothing at all raises no error of its own, and people are shown a word."""
    error = translate_adbc_error(refused(sqlstate, message))
    assert type(error) is type(translate_adbc_error(refused(sqlstate)))
    assert "OperationalError without a message" in str(error)


def test_a_value_that_postgres_quotes_is_left_out() -> None:
    """Data exceptions quote the value that does not fit; names in other messages stay."""
    value = 'invalid input syntax for type integer: "Jane "the" Doe\nfrom Genesis"'
    assert str(translate_adbc_error(refused("22P02", PG_DIAG_MESSAGE_PRIMARY=value))) == (
        'invalid input syntax for type integer: "…"'
    )
    name = 'null value in column "name" violates not-null constraint'
    assert str(translate_adbc_error(refused("23502", PG_DIAG_MESSAGE_PRIMARY=name))) == name


def test_no_text_of_a_statement_is_repeated() -> None:
    """The server's message is taken from its field, or from the driver's first line without the statement."""
    assert "it failed" in str(translate_adbc_error(refused("23505")))
    assert "an event" not in str(translate_adbc_error(refused("23505")))
    assert str(translate_adbc_error(refused("23505", PG_DIAG_MESSAGE_PRIMARY="duplicate"))) == "duplicate"


def test_table_and_constraint_are_the_servers_own_fields() -> None:
    """In COPY the table is in the context."""
    error = translate_adbc_error(
        refused("23505", PG_DIAG_TABLE_NAME="event_stream", PG_DIAG_CONSTRAINT_NAME="event_stream_applied_once")
    )
    assert isinstance(error, DataRefused)
    assert (error.about("event_stream_applied_once"), error.about("audit_log")) == (True, False)
    copied = translate_adbc_error(refused("22003", PG_DIAG_CONTEXT="COPY audit_log, line 1, column offset"))
    assert isinstance(copied, DataRefused)
    assert (copied.about("audit_log"), copied.about("event_stream")) == (True, False)


@pytest.mark.parametrize("text", ["a\x00b", "a\\b"])
def test_a_text_that_is_no_plain_literal_is_refused(text: str) -> None:
    """A NUL would end the statement; a backslash depends on settings."""
    with pytest.raises(ValueError, match="plain"):
        sql_literal(text)
