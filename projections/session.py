"""A worker's connection to Postgres for one partition: columns in by COPY, statements, and what errors mean.

ADBC sends polars frames as binary COPY from C++ with the interpreter lock released: 0.6-0.75 us a row, where tuples
through asyncpg cost 3.7 us. Calls block, so each partition has a thread (streams/ownership.py).

Statements that need no answer are kept by :meth:`Session.later` and go with the next one that does, in order: a small
batch is one round trip.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
from adbc_driver_manager import AdbcStatusCode
from adbc_driver_manager import Error as AdbcError

from database.address import libpq_address
from database.errors import DatabaseUnreachable
from database.sqlstates import (
    DATA,
    DATA_EXCEPTION,
    ENDS_STATEMENT,
    FENCED,
    INSUFFICIENT_PRIVILEGE,
    LOCK_NOT_AVAILABLE,
    OUTDATED,
    RANGE_REFUSED,
    RETRYABLE,
    SESSION_ENDS,
    UNKNOWN_NAME,
    is_one_of,
)
from entities.vocabulary import DEFAULT_TENANT
from schemas.polars_import import polars as pl
from streams.errors import LogRefused, OwnershipLost, PartitionStopped

CONNECTION_PARAMETERS: Mapping[str, str] = {
    "application_name": "plant-worker",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    # A statement that outlives these is given up and its batch tried again; a process frozen between statements
    # loses its transaction. One frozen inside COPY is terminated by the partition's next owner.
    "options": "-c statement_timeout=60s -c lock_timeout=20s -c idle_in_transaction_session_timeout=30s"
    " -c client_min_messages=warning -c jit=off -c standard_conforming_strings=on"
    # The tenant of all that is folded from events: they carry none.
    f" -c plant.governance_agent_id={DEFAULT_TENANT}",
}

DRIVER_OPTIONS: Mapping[str, str] = {"adbc.postgresql.type_resolver_mode": "builtin"}
"""Postgres's own types are known to the driver, and others have to be cast: an enum that is read comes as bytes. The
driver would else read all columns of all tables at each connection: 46 ms of processor time, more with each range."""


_COLUMN_TYPES = """
SELECT attname::text AS "column", format_type(atttypid, atttypmod) AS "type" FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


_QUOTED = re.compile('".*"', re.DOTALL)

_SEVERITY = "PG_DIAG_SEVERITY_NONLOCALIZED"

CONNECTION_STATUSES = frozenset({AdbcStatusCode.IO, AdbcStatusCode.CANCELLED, AdbcStatusCode.TIMEOUT})
"""What the driver reports where the server has said nothing, because it is not there. Anything else that comes without
a code is a defect: a type or a table that the driver can't handle."""


class DataRefused(Exception):
    """Postgres refused the values of some row of a batch; `names` are the table and constraint that it names."""

    def __init__(self, sqlstate: str, message: str, names: Sequence[str] = ()) -> None:
        self.sqlstate = sqlstate
        self._names = names
        super().__init__(message)

    def about(self, *names: str) -> bool:
        """Return whether Postgres names one of these tables, or a constraint whose name begins with one of them."""
        return any(name.startswith(names) for name in self._names)


class StatementEnded(DatabaseUnreachable):
    """The database has ended a statement without refusing it."""

    def __init__(self, sqlstate: str, what: str = "", *, why: str) -> None:
        self.sqlstate = sqlstate
        super().__init__(what, why=why)


class TableLocked(StatementEnded):
    """Another session kept its lock, of a table or a row, for longer than a statement may wait."""


class ProjectionBroken(PartitionStopped):
    """Postgres refused a statement of the projection: the schema is not the one this version needs."""


class NameUnknown(ProjectionBroken):
    """A statement of the projection names a table or a column that is not there."""


class RangeRefused(LogRefused):
    """The log has no range for a record behind a gap, and as many empty ranges as a worker may make."""


class WorkerOutdated(PartitionStopped):
    """This worker is older than the database, which a newer Plant has migrated."""


class Session:
    """One connection in autocommit; transactions are explicit. Not thread-safe: its partition's thread owns it."""

    def __init__(self, url: str) -> None:
        try:
            self._connection = adbc.connect(with_parameters(url), dict(DRIVER_OPTIONS), autocommit=True)
            self._cursor = self._connection.cursor()
            # Results of a few rows come cheaper without the COPY that ADBC puts around a query.
            self._small = self._connection.cursor(adbc_stmt_kwargs={"adbc.postgresql.use_copy": "false"})
        except AdbcError as error:
            raise translate_adbc_error(error) from error
        self._waiting: list[str] = []

    def later(self, *statements: str) -> None:
        """Run statements without parameters before whatever is run next; their errors come up there."""
        self._waiting += statements

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Run one statement."""
        self.run_waiting()
        try:
            # A SELECT in a COPY would run, and fail, only when its rows are read.
            self._small.execute(*without_nulls(sql, parameters))
        except AdbcError as error:
            raise translate_adbc_error(error) from error

    def script(self, *statements: str) -> None:
        """Run statements without parameters in one round trip: a third of what `execute` costs, which prepares each."""
        text = "\n;\n".join((*self._waiting, *statements))  # a comment ends where its line does
        self._waiting.clear()
        if "\x00" in text:  # libpq would end the script there, and call it a success
            raise DataRefused("22021", "a NUL character can't be stored")
        try:
            self._cursor.executescript(text)
        except AdbcError as error:
            raise translate_adbc_error(error) from error

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and fetch its few rows; column names must differ, and an enum is cast to text."""
        return self._fetch(self._small, sql, parameters).rows()

    def frame(self, sql: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
        """Run one statement and fetch its many rows as a frame."""
        return self._fetch(self._cursor, sql, parameters)

    def column_types(self, table: str) -> dict[str, str]:
        """Return the Postgres types of a table's columns, by name and in order."""
        return dict(self.query(_COLUMN_TYPES, (table,)))

    def run_waiting(self) -> None:
        """Run the statements that wait, if there are some."""
        if self._waiting:
            self.script()

    def forget_waiting(self) -> None:
        """Drop the statements that wait."""
        self._waiting.clear()

    def _fetch(self, cursor: Any, sql: str, parameters: Sequence[Any]) -> pl.DataFrame:
        self.run_waiting()
        try:
            cursor.execute(*without_nulls(sql, parameters))
            frame: pl.DataFrame = cursor.fetch_polars()
            return frame
        except AdbcError as error:
            raise translate_adbc_error(error) from error
        except pl.exceptions.ComputeError as error:  # how polars passes on that rows stopped to come
            raise DatabaseUnreachable(why=_without_statement(str(error))) from error

    def copy(self, table: str, frame: pl.DataFrame, *, schema: str | None = None, temporary: bool = False) -> None:
        """Append a frame to a table, columns by name."""
        self.run_waiting()
        try:
            self._cursor.adbc_ingest(table, frame, mode="append", db_schema_name=schema, temporary=temporary)
        except AdbcError as error:
            raise translate_adbc_error(error) from error

    def begin(self) -> None:
        """Start a transaction."""
        self.script("BEGIN")

    def commit(self) -> None:
        """Commit; when this raises DatabaseUnreachable the outcome is unknown until the checkpoint is read again."""
        self.script("COMMIT")

    def rollback(self) -> None:
        """Abandon the transaction."""
        self.forget_waiting()
        self.script("ROLLBACK")

    def close(self) -> None:
        """Close the connection, which rolls back what is open; never raises."""
        for cursor in (self._cursor, self._small):
            with contextlib.suppress(AdbcError, RuntimeError):
                cursor.close()
        with contextlib.suppress(AdbcError, RuntimeError):
            self._connection.close()


def translate_adbc_error(error: AdbcError) -> Exception:
    """Return the error for a driver error: try again, acquire the partition again, look for the row, or stop."""
    sqlstate = error.sqlstate or ""
    fields = {name.decode(): value.decode("utf-8", "replace") for name, value in error.details or () if value}
    text = _message(error, fields)
    if not sqlstate and error.status_code not in CONNECTION_STATUSES:
        return ProjectionBroken(
            "The database driver can't run a statement of the projection.", why=text, next_step="plant doctor"
        )
    session_ends = fields.get(_SEVERITY) in SESSION_ENDS
    if is_one_of(sqlstate, ENDS_STATEMENT) and not session_ends:
        return StatementEnded(sqlstate, why=text)
    if sqlstate == LOCK_NOT_AVAILABLE and not session_ends:
        return TableLocked(sqlstate, why=text)
    if not sqlstate or is_one_of(sqlstate, RETRYABLE) or session_ends:
        return DatabaseUnreachable(why=text)
    if is_one_of(sqlstate, DATA):
        copied = fields.get("PG_DIAG_CONTEXT", "").partition("COPY ")[2].partition(",")[0]
        table = fields.get("PG_DIAG_TABLE_NAME") or copied
        return DataRefused(sqlstate, text, [table, fields.get("PG_DIAG_CONSTRAINT_NAME", "")])
    if sqlstate == FENCED:
        return OwnershipLost(why=text)
    if sqlstate == INSUFFICIENT_PRIVILEGE:
        return LogRefused(why=text, next_step="plant doctor")
    if sqlstate == RANGE_REFUSED:
        return RangeRefused(why=text, next_step="see docs/runbooks/the-log.md")
    if sqlstate == OUTDATED:
        return WorkerOutdated(why=text, next_step="plant --version")
    broken = NameUnknown if is_one_of(sqlstate, UNKNOWN_NAME) else ProjectionBroken
    return broken(why=text, next_step="plant db upgrade")


def _message(error: AdbcError, fields: Mapping[str, str]) -> str:
    """Return what the server says, or the driver where the server says nothing; without values of rows.

    The driver's own text repeats the statement, events and all; the server's own fields come apart from it.
    """
    text = fields.get("PG_DIAG_MESSAGE_PRIMARY") or _without_statement(str(error))
    if is_one_of(error.sqlstate, DATA_EXCEPTION):
        text = _QUOTED.sub('"…"', text)  # a value that does not fit its type is quoted
    return text or f"{type(error).__name__} without a message"


def _without_statement(text: str) -> str:
    """Return the first line of a driver's text after the statement that it repeats: DETAIL may show a row.

    >>> _without_statement("[libpq] Failed to execute query 'SELECT 1': ERROR: no\\nDETAIL: Failing row (1)")
    'ERROR: no'
    """
    return text.rpartition("': ")[2].strip().partition("\n")[0]


def without_nulls(sql: str, parameters: Sequence[Any]) -> tuple[str, Sequence[Any] | None]:
    """Return a statement with NULL in the place of parameters that are None, which the driver can't send (1.11).

    >>> without_nulls("SELECT $1, $2::uuid, $3", ("a", None, 7))
    ('SELECT $1, NULL::uuid, $2', ['a', 7])
    >>> without_nulls("SELECT 1", ())
    ('SELECT 1', None)
    """
    if None not in parameters:
        return sql, parameters or None
    kept = [value for value in parameters if value is not None]
    names = iter(range(1, len(kept) + 1))
    texts = ["NULL" if value is None else f"${next(names)}" for value in parameters]
    return re.sub(r"\$(\d+)", lambda match: texts[int(match[1]) - 1], sql), kept or None


def quoted_table(schema: str, table: str) -> str:
    """Return a table's name for a statement.

    >>> quoted_table("log", "genesis.events/3/0")
    '"log"."genesis.events/3/0"'
    """
    return ".".join('"' + name.replace('"', '""') + '"' for name in (schema, table))


def sql_literal(value: str | int) -> str:
    """Return a text, number or truth value as an SQL literal, for statements that go without parameters.

    >>> sql_literal("o'clock"), sql_literal(7), sql_literal(True)
    ("'o''clock'", '7', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if "\x00" in value or "\\" in value:
        raise ValueError(f"not a plain text: {value!r}")
    return "'" + value.replace("'", "''") + "'"


def with_parameters(url: str) -> str:
    """Return the address for libpq, with the worker's connection parameters. Raises BadDatabaseAddress."""
    return libpq_address(url, **CONNECTION_PARAMETERS)
