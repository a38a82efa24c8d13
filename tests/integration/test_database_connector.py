"""The connector: transactions, timeouts, named errors, and its refusal to serve with too many rights."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import log_rows
import msgspec
import pytest
from conftest import Database as MigratedDatabase
from services import Services
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from database.connector import Database, connect
from database.errors import BadDatabaseAddress, DatabaseUnreachable, TooMuchPrivilege
from devstack import sql
from runtime.errors import ConfigurationError
from runtime.settings import Settings

ROLE_PASSWORD = secrets.token_hex(8)


@pytest.fixture(scope="module")
def database(stack: Services, template_database: str) -> Iterator[MigratedDatabase]:
    """One migrated database for this module."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Database]:
    """A connector that reaches `url` as its writer."""
    database = connect(Settings(database_writer_url=url), "writer")
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
def make_role(database: MigratedDatabase) -> Iterator[Callable[[str], str]]:
    """Makes a role that may enter the database, and gives its address; it goes when the test ends."""
    made: list[str] = []

    def make(attributes: str = "") -> str:
        name = f"plant_test_{secrets.token_hex(6)}"
        create = f"CREATE ROLE {name} LOGIN PASSWORD '{ROLE_PASSWORD}' {attributes}"
        sql.run(database.superuser_url, [create, f"GRANT CONNECT, TEMPORARY ON DATABASE {database.name} TO {name}"])
        made.append(name)
        address = urlsplit(database.superuser_url)
        place = f"{name}:{ROLE_PASSWORD}@{address.hostname}:{address.port}"
        return address._replace(netloc=place).geturl()

    yield make
    for name in made:
        sql.run(database.superuser_url, [f"DROP OWNED BY {name}", f"DROP ROLE {name}"])


async def refusal(url: str) -> str:
    async with connected(url) as connector:
        with pytest.raises(TooMuchPrivilege) as error:
            await connector.assert_least_privilege()
    assert "PLANT_DATABASE_WRITER_URL" in error.value.next_step
    assert urlsplit(url).password not in str(error.value)
    return error.value.why


@pytest.mark.parametrize("role", ["writer", "api", "auditor"])
async def test_service_roles_may_serve(database: MigratedDatabase, role: str) -> None:
    """Each service role passes the check, straight after the migration."""
    async with connected(getattr(database, f"{role}_url")) as connector:
        await connector.assert_least_privilege()


async def test_a_superuser_may_not_serve(database: MigratedDatabase) -> None:
    """The refusal says that the role is a superuser."""
    assert await refusal(database.superuser_url) == "The role postgres is a superuser."


async def test_the_owner_may_not_serve(database: MigratedDatabase) -> None:
    """The refusal says what plant_owner owns."""
    assert "plant_owner owns" in await refusal(database.owner_url)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ("SUPERUSER", "is a superuser"),
        ("BYPASSRLS", "BYPASSRLS"),
        ("CREATEROLE", "may make roles"),
        ("REPLICATION", "replicate"),
        ("IN ROLE plant_owner NOINHERIT", "plant_owner owns"),
        ("IN ROLE postgres NOINHERIT", "postgres is a superuser"),
        ("IN ROLE pg_execute_server_program", "pg_execute_server_program"),
        ("IN ROLE pg_write_all_data", "pg_write_all_data"),
    ],
)
async def test_rights_that_can_be_reached_count(make_role: Callable[[str], str], attributes: str, said: str) -> None:
    """Rights over the server, and rights that SET ROLE would give, are refused like one's own."""
    assert said in await refusal(make_role(attributes))


async def test_the_owner_of_a_single_table_may_not_serve(
    database: MigratedDatabase, make_role: Callable[[str], str]
) -> None:
    """Owning any table in the database is too much; temporary ones don't count."""
    url = make_role("")
    async with connected(url) as connector:
        async with connector.transaction() as connection:
            await connection.execute(text("CREATE TEMPORARY TABLE mine (a int)"))
        await connector.assert_least_privilege()
    name = urlsplit(url).username
    statements = [f"GRANT USAGE, CREATE ON SCHEMA public TO {name}", f"SET ROLE {name}", f"CREATE TABLE {name} (a int)"]
    sql.run(database.superuser_url, statements)
    assert f"owns the table {name}" in await refusal(url)


async def test_a_transaction_commits_or_rolls_back(database: MigratedDatabase) -> None:
    """What a block wrote is there when it ends, and gone when it raises; the error comes out as it is."""
    row = "INSERT INTO checkpoints VALUES (:name, 1, 't', 0, 0)"

    async def dropped(connector: Database) -> None:
        async with connector.transaction() as connection:
            await connection.execute(text(row), {"name": "dropped"})
            raise OSError("of the caller")

    async with connected(database.writer_url) as connector:
        async with connector.transaction() as connection:
            await connection.execute(text(row), {"name": "kept"})
        with pytest.raises(OSError, match="of the caller"):
            await dropped(connector)
        async with connector.transaction() as connection:
            names = (await connection.execute(text("SELECT projection FROM checkpoints"))).scalars().all()
    assert names == ["kept"]


async def test_errors_of_statements_are_not_renamed(database: MigratedDatabase) -> None:
    """A wrong statement is not an outage."""
    async with connected(database.writer_url) as connector:
        with pytest.raises(DBAPIError, match="no_such_table"):
            async with connector.transaction() as connection:
                await connection.execute(text("SELECT * FROM no_such_table"))


async def test_every_session_has_limits(database: MigratedDatabase) -> None:
    """Statement, lock and idle timeouts and a name are set in the session, not left to the server."""
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "application_name")
    async with connected(database.writer_url) as connector, connector.transaction() as connection:
        shown = [(await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names]
    assert shown == ["30s", "10s", "1min", "plant writer"]


async def test_a_lost_connection_is_named_and_replaced(database: MigratedDatabase) -> None:
    """A backend that was terminated is an outage for the transaction in it; the next one gets a new connection."""

    async def cut_off(connector: Database) -> None:
        async with connector.transaction() as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            sql.run(database.superuser_url, [f"SELECT pg_terminate_backend({pid}, 5000)"])
            await connection.execute(text("SELECT 1"))

    async with connected(database.writer_url) as connector:
        with pytest.raises(DatabaseUnreachable):
            await cut_off(connector)
        async with connector.transaction() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"netloc": "plant_writer:secret-word@127.0.0.1:1"}, "nothing listens"),
        ({"path": "/no_such_database"}, "no_such_database"),
        ({"password": "secret-word"}, "password authentication failed"),
    ],
)
async def test_an_unreachable_database_is_named(database: MigratedDatabase, change: dict[str, str], said: str) -> None:
    """No server, no such database and a wrong password are outages with a reason, and never show the password."""
    address = urlsplit(database.writer_url)
    if "password" in change:
        change = {"netloc": f"plant_writer:{change['password']}@{address.hostname}:{address.port}"}
    async with connected(address._replace(**change).geturl()) as connector:
        with pytest.raises(DatabaseUnreachable, match=said) as error:
            await connector.assert_least_privilege()
    assert error.value.exit_code == 4
    assert "secret-word" not in str(error.value)


@pytest.mark.parametrize("address", ["mysql://u:secret-word@h/d", "secret-word", "postgresql://u:secret-word@h:port/d"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """Another scheme, or no URL at all, is a configuration error that doesn't show the address."""
    with pytest.raises(BadDatabaseAddress) as error:
        connect(Settings(database_url=address), "api")
    assert "secret-word" not in str(error.value)


def test_a_missing_address_is_refused(settings_without_addresses: Settings) -> None:
    """Without an address for the role there is nothing to connect to."""
    with pytest.raises(ConfigurationError, match="plant_auditor"):
        connect(settings_without_addresses, "auditor")


@pytest.fixture
def settings_without_addresses() -> Settings:
    """Settings that name only the writer's database."""
    return msgspec.structs.replace(Settings(), database_writer_url="postgresql://h/d")
