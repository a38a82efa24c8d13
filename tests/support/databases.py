"""Databases of tests: copies of a migrated one, put back as the copy was where a test has only written rows.

A copy takes a tenth of a second of the server's processor time, putting one back a tenth of that. Whether a test has
done more than write rows is seen in the catalogs: rows that came, went or changed there, settings of the database, rows
that the migrations wrote. The catalogs are compared only where the server has counted a change of one since they were;
temporary tables are such changes too, and leave no row. A database that differs is dropped. A name is used once, so
that what a test has left running finds no database.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import asyncpg

from devstack import postgres, sql

END_TIMEOUT_MS: Final = 5_000
"""How long a session that a test has left may take to end; the database is dropped otherwise, which waits."""
_OF_A_TEST: Final = {
    "pg_statistic": "starelid >= 16384",  # Autovacuum analyses catalogs of the template as well.
    "pg_namespace": "nspname !~ '^pg_(toast_)?temp_'",  # Those of temporary tables stay.
}
"""Which rows of a catalog count, where not all do."""
_ENDED: Final = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError, OSError)
"""How a statement fails on a connection that the server has ended."""

_CATALOGS: Final = """
    SELECT quote_ident(relname) FROM pg_class
    WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared ORDER BY relname"""
_TABLES: Final = """
    SELECT oid::regclass::text FROM pg_class
    WHERE relkind = 'r' AND relnamespace <> ALL ('{pg_catalog,information_schema}'::regnamespace[])
        AND pg_relation_size(oid) > 0 ORDER BY oid"""
"""Those that hold or held rows: planning a query on each of the others costs more than all the rest."""
_CHANGES: Final = """
    SELECT sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid) + pg_stat_get_tuples_deleted(oid))
    FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared"""
"""How many rows of catalogs came, went or changed, whether or not that was committed: sessions tell it as they end."""
_DATABASE: Final = """
    SELECT concat_ws('/', datdba, datacl, datconnlimit, datallowconn, datistemplate,
        (SELECT string_agg(s::text, ',' ORDER BY s::text) FROM pg_db_role_setting AS s WHERE setdatabase = d.oid),
        (SELECT count(*) FROM pg_prepared_xacts WHERE database = datname),
        (SELECT sum(reltuples) || ',' || sum(relpages) FROM pg_class WHERE oid >= 16384))
    FROM pg_database AS d WHERE datname = current_database()"""
_SEQUENCES: Final = """
    SELECT format('%I.%I', schemaname, sequencename) AS name, last_value, start_value FROM pg_sequences"""
_END_SESSIONS: Final = f"""
    SELECT coalesce(bool_and(pg_terminate_backend(pid, {END_TIMEOUT_MS})), true) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""


class Databases:
    """Copies of one template, for one process. `close` drops them all."""

    def __init__(self, superuser_url: str, template: str, in_database: Callable[[str, str], str]) -> None:
        self._superuser_url = superuser_url
        self._renaming = KeptConnection(superuser_url)
        self._template = template
        self._in_database = in_database
        self._clean: list[str] = []
        self._as_copied: tuple[str, str] | None = None
        self._changes: dict[str, int] = {}
        """The number of changes of catalogs with which a database was seen to be as it was copied."""
        self._catalogs: list[str] = []
        self._written: list[str] = []
        """Tables that hold rows in a copy; what a test wrote there is not taken back."""
        self._sequences: dict[str, int | None] = {}

    def take(self) -> str:
        """Return the name of a database that is as the template, and that nobody else gets."""
        name = f"plant_test_{secrets.token_hex(6)}"
        if self._clean:
            before = self._clean.pop()
            self._renaming.execute(f"ALTER DATABASE {before} RENAME TO {name}")
            self._changes[name] = self._changes.pop(before)
            return name
        postgres.create_database(self._superuser_url, name, template=self._template)
        if self._as_copied is None:
            self._as_copied = self._run(name, self._learn)
        return name

    def give_back(self, name: str) -> None:
        """Put a database back as it was copied; drop it where a test has done more than write rows."""
        known = self._changes.pop(name, None)
        try:
            changes = self._run(name, lambda connection: self._put_back(connection, known))
        except (asyncpg.PostgresError, OSError, TimeoutError):
            changes = None
        if changes is None:
            postgres.drop_database(self._superuser_url, name)
        else:
            self._changes[name] = changes
            self._clean.append(name)

    def close(self) -> None:
        for name in self._clean:
            postgres.drop_database(self._superuser_url, name)
        self._clean.clear()
        self._renaming.close()

    def _run(self, name: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return sql.run_on(self._in_database(self._superuser_url, name), work)

    async def _learn(self, connection: Any) -> tuple[str, str]:
        self._catalogs = [row[0] for row in await connection.fetch(_CATALOGS)]
        for (table,) in await connection.fetch(_TABLES):
            if await connection.fetchval(f"SELECT EXISTS (SELECT FROM ONLY {table})"):
                self._written.append(table)
        self._sequences = {row["name"]: row["last_value"] for row in await connection.fetch(_SEQUENCES)}
        return await self._catalog_rows(connection), await self._own_rows(connection)

    async def _put_back(self, connection: Any, known: int | None) -> int | None:
        """Remove what a test wrote; return the changes of catalogs, None where the database is not as it was copied.

        With `known` changes the catalogs are as they were copied.
        """
        if not await connection.fetchval(_END_SESSIONS):
            return None
        assert self._as_copied is not None
        catalog_rows, own_rows = self._as_copied
        changes: int = await connection.fetchval(_CHANGES)
        if changes != known and await self._catalog_rows(connection) != catalog_rows:
            return None
        if await self._own_rows(connection) != own_rows:
            return None
        tables = [row[0] for row in await connection.fetch(_TABLES) if row[0] not in self._written]
        filled = await connection.fetch(
            " UNION ALL ".join(f"SELECT {sql.literal(each)} WHERE EXISTS (SELECT FROM ONLY {each})" for each in tables)
        )
        if filled:
            await connection.execute("SET session_replication_role = replica")
            for (table,) in filled:
                await connection.execute(f"DELETE FROM ONLY {table}")
        for name, last, start in await connection.fetch(_SEQUENCES):
            if last != (before := self._sequences[name]):
                await connection.execute(
                    "SELECT setval($1::text::regclass, $2, $3)", name, before or start, before is not None
                )
        return changes

    async def _catalog_rows(self, connection: Any) -> str:
        """Return what differs as soon as a test has changed what there is, and not rows of tables alone."""
        rows = [
            f"SELECT {sql.literal(each)} || count(*) || '/' || coalesce(sum(xmin::text::bigint), 0) FROM {each}"
            f" WHERE {_OF_A_TEST.get(each, 'true')}"
            for each in self._catalogs
        ]
        return "\n".join(str(row[0]) for row in await connection.fetch(" UNION ALL ".join(rows)))

    async def _own_rows(self, connection: Any) -> str:
        """Return what differs as soon as a test has written tables that hold rows in a copy, or set the database."""
        rows = [f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {each} AS t" for each in self._written]
        return "\n".join(str(row[0]) for row in await connection.fetch(" UNION ALL ".join([*rows, _DATABASE])))


class KeptConnection:
    """A connection for statements one after another, in a thread of its own: tests run event loops of theirs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.new_event_loop()
        self._connection: Any = None

    def execute(self, statement: str) -> None:
        """Run a statement; once more on a new connection where the server has ended the one that was kept."""
        self._thread.submit(self._loop.run_until_complete, self._execute(statement)).result()

    async def _execute(self, statement: str) -> None:
        if self._connection is not None:
            try:
                await self._connection.execute(statement)
                return
            except _ENDED:
                self._connection.terminate()
        self._connection = await asyncpg.connect(self._url, timeout=sql.LOGIN_TIMEOUT_SECONDS)
        await self._connection.execute(statement)

    def close(self) -> None:
        if self._connection is not None:
            self._thread.submit(self._loop.run_until_complete, self._connection.close()).result()
        self._thread.shutdown()
        self._loop.close()
