"""Migrations of the schema: Alembic without an ini file, one migration at a time in each database.

Runs as `plant_owner`. Two upgrades at once wait for each other; a table that somebody holds makes the upgrade give up
after :data:`LOCK_TIMEOUT_SECONDS` instead of blocking every later session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Final, TypeVar

import asyncpg
import msgspec
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import pool
from sqlalchemy.engine import Connection
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine

from database.address import connect_arguments, shown
from database.error_translation import driver_error, translate_unreachable
from database.errors import (
    ExtensionMissing,
    MigrationLocked,
    MigrationRefused,
    RolesMissing,
    UnknownRevision,
)
from database.migrations.log_records import LOG_NAMES_REVISION, REFUSE_CONTROL_RECORDS

LOCK_TIMEOUT_SECONDS: Final = 10
OTHER_UPGRADE_TIMEOUT_SECONDS: Final = 120
_ADVISORY_LOCK: Final = 0x504C414E54  # "PLANT"
_POLL_SECONDS: Final = 0.1
_REFUSED: Final = ("22000", "55000", "2BP01")
"""SQLSTATEs by which a migration is refused: data_exception, object_not_in_prerequisite_state, and
dependent_objects_still_exist, for views that somebody else has made.
"""

T = TypeVar("T")


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration of this version of Plant; `applied` says whether the database has it."""

    revision: str
    applied: bool
    about: str


def upgrade(url: str, revision: str = "heads") -> tuple[str, ...]:
    """Migrate up to `revision`, each migration in a transaction; return the revisions of the database afterwards.

    Doing it again changes nothing; after a failure it goes on with the migration that failed. Raises
    DatabaseUnreachable, MigrationLocked, RolesMissing, ExtensionMissing.
    """

    def work(connection: Connection) -> tuple[str, ...]:
        _one_at_a_time(connection)
        command.upgrade(_config(connection), revision)
        connection.exec_driver_sql(_LET_SERVICES_CHECK)
        connection.commit()
        return _current(connection)

    return _run(partial(_with_connection, url, work))


def downgrade(url: str, revision: str) -> tuple[str, ...]:
    """Migrate down to `revision` (`base`: nothing is left, data included). For tests and development.

    Raises MigrationRefused, before anything is undone, where the way leads past what a control record closes.
    """

    def work(connection: Connection) -> tuple[str, ...]:
        _one_at_a_time(connection)
        if LOG_NAMES_REVISION in _undone(connection, revision):
            connection.exec_driver_sql(REFUSE_CONTROL_RECORDS)
        connection.commit()
        command.downgrade(_config(connection), revision)
        connection.commit()
        return _current(connection)

    return _run(partial(_with_connection, url, work))


def current(url: str) -> tuple[str, ...]:
    """Return the revisions that the database is at, sorted; empty before the first migration."""
    return _run(partial(_with_connection, url, _current))


def history(url: str) -> list[Migration]:
    """Return this version's migrations in the order in which they run, each with whether the database has it.

    Raises UnknownRevision where the database is at a revision of a newer Plant.
    """

    def work(connection: Connection) -> list[Migration]:
        return _history(_scripts(), _current(connection))

    return _run(partial(_with_connection, url, work))


def sql(revision: str = "heads", *, since: str = "") -> str:
    """Return the statements of an upgrade from `since` (default: from nothing) to `revision`; no database is asked.

    Raises UnknownRevision where there is no such revision, or nothing between the two.
    """
    output = StringIO()
    config = _config(None)
    config.output_buffer = output
    try:
        command.upgrade(config, f"{since}:{revision}" if since else revision, sql=True)
    except CommandError as error:
        raise UnknownRevision(why=f"{error}.", next_step="plant db current") from error
    statements = output.getvalue()
    if not statements.strip():
        begin = since or "an empty database"
        raise UnknownRevision(
            f"There is nothing to print from {begin} to {revision}.",
            why=f"No migration leads from {begin} up to {revision}; upgrades go forward alone.",
            next_step="plant db history",
        )
    return statements


def heads() -> tuple[str, ...]:
    """Return the revisions that this version of Plant needs, sorted."""
    return tuple(sorted(_scripts().get_heads()))


_LET_SERVICES_CHECK: Final = (
    "GRANT SELECT ON alembic_version"
    " TO plant_writer, plant_ingress, plant_operator, plant_api, plant_auditor, plant_embedder, plant_deliverer,"
    " plant_endpoints"
)


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(None))


def _current(connection: Connection) -> tuple[str, ...]:
    return tuple(sorted(MigrationContext.configure(connection).get_current_heads()))


def _undone(connection: Connection, revision: str) -> set[str]:
    """Return the revisions that a downgrade to `revision` undoes, as alembic finds them: also for `-1` and branches."""
    at = MigrationContext.configure(connection).get_current_heads()
    return {step.revision.revision for step in _scripts()._downgrade_revs(revision, at)}  # type: ignore[arg-type]


def _history(scripts: ScriptDirectory, at: tuple[str, ...]) -> list[Migration]:
    known = {script.revision for script in scripts.walk_revisions()}
    if unknown := sorted(set(at) - known):
        raise UnknownRevision(
            f"The database is at {', '.join(unknown)}, which this version of Plant does not know.",
            why="A newer Plant has migrated it.",
            next_step="plant --version",
        )
    applied = {script.revision for script in scripts.iterate_revisions(at, "base")} if at else set()
    return [
        Migration(revision=script.revision, applied=script.revision in applied, about=" ".join(script.doc.split()))
        for script in reversed(list(scripts.walk_revisions()))
    ]


def _one_at_a_time(connection: Connection) -> None:
    """Hold the session's advisory lock; polled, since waiting inside Postgres blocks concurrent index builds."""
    deadline = time.monotonic() + OTHER_UPGRADE_TIMEOUT_SECONDS
    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_ADVISORY_LOCK})").scalar_one():
        connection.rollback()
        if time.monotonic() > deadline:
            raise MigrationLocked(
                why=f"Another migration has been running for {OTHER_UPGRADE_TIMEOUT_SECONDS} s.",
                next_step="plant db current",
            )
        time.sleep(_POLL_SECONDS)
    connection.commit()


async def _with_connection(url: str, work: Callable[[Connection], T]) -> T:
    arguments = connect_arguments(url, application_name="plant migrate", lock_timeout=f"{LOCK_TIMEOUT_SECONDS}s")
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=partial(asyncpg.connect, **arguments), poolclass=pool.NullPool
    )
    try:
        with _translated_errors(url):
            async with engine.connect() as connection:
                return await connection.run_sync(work)
    finally:
        await engine.dispose()


@contextmanager
def _translated_errors(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as raised:
        # Where the session is lost in an autocommit block, leaving the block raises once more.
        error = (isinstance(raised, PendingRollbackError) and raised.__context__) or raised
        cause = driver_error(error)
        if isinstance(cause, asyncpg.LockNotAvailableError):
            raise MigrationLocked(
                why=f"A session kept a table locked for {LOCK_TIMEOUT_SECONDS} s; that migration changed nothing.",
                next_step="plant db upgrade",
            ) from error
        if isinstance(cause, asyncpg.PostgresError) and cause.sqlstate in _REFUSED:
            why = f"{cause.args[0]}: {cause.detail}." if cause.detail else f"{cause.args[0]}."
            raise MigrationRefused(why=why, next_step="see docs/how-to/database.md") from error
        if isinstance(cause, asyncpg.UndefinedObjectError) and "role" in str(cause):
            raise RolesMissing(why=f"{cause}.", next_step="psql -f database/roles.sql") from error
        if isinstance(cause, asyncpg.InsufficientPrivilegeError) and "extension" in str(cause):
            raise ExtensionMissing(why=f"{cause}.", next_step='psql -c "CREATE EXTENSION vector"') from error
        if isinstance(error, CommandError):
            raise UnknownRevision(why=f"{error}.", next_step="plant db current") from error
        if unreachable := translate_unreachable(error, shown(url)):
            raise unreachable from error
        raise


def _run(start: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run the coroutine to its end, on a thread of its own: this one may have an event loop already."""
    with ThreadPoolExecutor(1, "plant migrate") as pool:
        return pool.submit(lambda: asyncio.run(start())).result()
