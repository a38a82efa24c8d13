"""Connections to Postgres for services: one engine a process and role, transactions, and the check of its rights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from database.address import shown, sqlalchemy_url
from database.errors import DatabaseUnreachable, TooMuchPrivilege
from database.unreachable import unreachable_because
from runtime.settings import DatabaseRole, Settings

CONNECT_TIMEOUT_SECONDS: Final = 10
STATEMENT_TIMEOUT_SECONDS: Final = 30
LOCK_TIMEOUT_SECONDS: Final = 10
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS: Final = 60

# What this session may do, or may come to do through roles it is a member of (`pg_has_role` says yes to all of them
# for a superuser). The owner of a schema or database may drop what others own in it.
_RIGHTS: Final = """
SELECT why FROM (
    SELECT 1, format('The role %s is a superuser.', rolname) FROM pg_roles
        WHERE rolsuper AND pg_has_role(session_user, oid, 'MEMBER')
    UNION ALL
    SELECT 2, format('The role %s bypasses row-level security (BYPASSRLS).', rolname) FROM pg_roles
        WHERE rolbypassrls AND pg_has_role(session_user, oid, 'MEMBER')
    UNION ALL
    SELECT 3, format('The role %s may make roles, replicate, or use the server''s files.', rolname) FROM pg_roles
        WHERE (rolcreaterole OR rolreplication OR rolname IN ('pg_execute_server_program', 'pg_write_server_files',
               'pg_read_server_files', 'pg_write_all_data')) AND pg_has_role(session_user, oid, 'MEMBER')
    UNION ALL
    SELECT 4, format('The role %s owns the database %s.', pg_get_userbyid(datdba), datname) FROM pg_database
        WHERE datname = current_database() AND pg_has_role(session_user, datdba, 'MEMBER')
    UNION ALL
    SELECT 5, format('The role %s owns the table %s.', pg_get_userbyid(relowner), c.oid::regclass) FROM pg_class c
        WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND pg_has_role(session_user, relowner, 'MEMBER')
) AS rights (rank, why) ORDER BY rank, why LIMIT 1
"""


class Database:
    """A role's connections. Made by :func:`connect`; close it when done.

    Connects when it is first used. Every session has a statement, a lock and an idle-in-transaction timeout.
    """

    def __init__(self, engine: AsyncEngine, role: DatabaseRole, address: str) -> None:
        self.engine = engine
        self.role: DatabaseRole = role
        self._shown = shown(address)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction: committed when the block ends, rolled back when it raises.

        Raises DatabaseUnreachable where the server does not answer or goes away.
        """
        try:
            connection = await self.engine.connect()
        except Exception as error:
            if why := unreachable_because(error):
                raise self._unreachable(why) from error
            raise
        async with aclosing(connection):
            try:
                async with connection.begin():
                    yield connection
            except DBAPIError as error:
                if why := unreachable_because(error):
                    raise self._unreachable(why) from error
                raise

    async def assert_least_privilege(self) -> None:
        """Refuse to serve with rights that would let a fault in Plant rewrite its own log.

        Raises TooMuchPrivilege when this session is, or can become through a role it is a member of: a superuser, a
        role with BYPASSRLS or other rights over the server, or the owner of this database or of any table in it.
        """
        async with self.transaction() as connection:
            why = (await connection.execute(text(_RIGHTS))).scalar_one_or_none()
        if why is not None:
            raise TooMuchPrivilege(
                f"Plant does not serve as {self._shown}.",
                why=why,
                next_step=f"export PLANT_DATABASE_{self.role.upper()}_URL=postgresql://plant_{self.role}:…@host/plant",
            )

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    def _unreachable(self, why: str) -> DatabaseUnreachable:
        return DatabaseUnreachable(why=f"{self._shown}: {why}", next_step="plant status")


def connect(settings: Settings, role: DatabaseRole) -> Database:
    """The database as `plant_<role>`; does not connect yet. Raises ConfigurationError for a missing or bad address."""
    address = settings.database_address(role)
    limits = {
        "application_name": f"plant {role}",
        "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
        "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS}s",
    }
    engine = create_async_engine(
        sqlalchemy_url(address),
        pool_pre_ping=True,
        connect_args={"server_settings": limits, "timeout": CONNECT_TIMEOUT_SECONDS},
    )
    return Database(engine, role, address)
