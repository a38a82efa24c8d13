"""What errors of the database driver mean to a worker."""

from __future__ import annotations

import pytest
from adbc_driver_manager import AdbcStatusCode, OperationalError

from database.errors import DatabaseUnreachable
from projections.session import DataRefused, ProjectionBroken, sql_literal, translate_adbc_error
from streams.errors import LogRefused, OwnershipLost


def refused(sqlstate: str | None, **fields: str) -> OperationalError:
    details = [(name.encode(), value.encode()) for name, value in fields.items()]
    message = "[libpq] Failed to execute query 'SELECT 1': ERROR:  it failed\nLINE 1: an event's name"
    return OperationalError(message, status_code=AdbcStatusCode.IO, sqlstate=sqlstate, details=details)


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        (None, DatabaseUnreachable),
        ("08006", DatabaseUnreachable),
        ("25P02", DatabaseUnreachable),
        ("40P01", DatabaseUnreachable),
        ("53300", DatabaseUnreachable),
        ("55P03", DatabaseUnreachable),
        ("57014", DatabaseUnreachable),
        ("57P01", DatabaseUnreachable),
        ("58030", DatabaseUnreachable),
        ("XX000", DatabaseUnreachable),
        ("22003", DataRefused),
        ("23505", DataRefused),
        ("PL001", OwnershipLost),
        ("42501", LogRefused),
        ("42P01", ProjectionBroken),
        ("0A000", ProjectionBroken),
    ],
)
def test_each_code_has_its_error(sqlstate: str | None, expected: type[Exception]) -> None:
    """To try again, to look for the row, to acquire the partition again, or a named stop."""
    assert type(translate_adbc_error(refused(sqlstate))) is expected


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
