"""The connector: reaching a database and losing it, timeouts, TLS, named errors, and its refusal of too many rights."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from database import connector as connector_module
from database import driver, engine
from database.connector import Database, connect
from database.errors import (
    BadDatabaseAddress,
    ConstraintRefused,
    DatabaseUnreachable,
    LockTimedOut,
    StatementTimedOut,
    TooMuchPrivilege,
    ValueRefused,
)
from devstack import sql
from devstack.stack import Stack
from runtime.errors import ConfigurationError
from runtime.settings import Settings
from tests.conftest import Database as MigratedDatabase
from tests.support import log_rows
from tests.support.connectors import connected
from tests.support.services import Services
from tests.support.standby import standby
from tests.support.tls_front import make_certificate, tls_front
from tests.support.unresponsive_front import unresponsive_front
from tests.support.waiting import wait_until_async


@pytest.fixture(scope="module")
def database(stack: Services, template_database: str) -> Iterator[MigratedDatabase]:
    """One migrated database for this module."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


async def refusal(url: str) -> str:
    async with connected(url) as connector:
        with pytest.raises(TooMuchPrivilege) as error:
            await connector.assert_least_privilege()
    assert "PLANT_DATABASE_WRITER_URL" in error.value.next_step
    assert urlsplit(url).password not in str(error.value)
    return error.value.why


@pytest.mark.parametrize(
    "role", ["writer", "ingress", "operator", "api", "auditor", "embedder", "deliverer", "endpoints"]
)
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
    ("attributes", "message"),
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
async def test_rights_that_can_be_reached_count(make_role: Callable[[str], str], attributes: str, message: str) -> None:
    """Rights over the server, and rights that SET ROLE would give, are refused like one's own."""
    assert message in await refusal(make_role(attributes))


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
    sql.execute(database.superuser_url, statements)
    assert f"owns the table {name}" in await refusal(url)


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
            sql.execute(database.superuser_url, [f"SELECT pg_terminate_backend({pid}, 5000)"])
            await connection.execute(text("SELECT 1"))

    async with connected(database.writer_url) as connector:
        with pytest.raises(DatabaseUnreachable):
            await cut_off(connector)
        async with connector.transaction() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"netloc": "plant_writer:secret-word@127.0.0.1:1"}, "nothing listens"),
        ({"path": "/no_such_database"}, "no_such_database"),
        ({"password": "secret-word"}, "password authentication failed"),
    ],
)
async def test_an_unreachable_database_is_named(
    database: MigratedDatabase, change: dict[str, str], message: str
) -> None:
    """No server, no such database and a wrong password are outages with a reason, and never show the password."""
    address = urlsplit(database.writer_url)
    if "password" in change:
        change = {"netloc": f"plant_writer:{change['password']}@{address.hostname}:{address.port}"}
    async with connected(address._replace(**change).geturl()) as connector:
        with pytest.raises(DatabaseUnreachable, match=message) as error:
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


async def test_a_session_is_healthy(database: MigratedDatabase) -> None:
    """The connector says as whom, where and in which encoding it works: UTC, UTF-8, the role's own name."""
    query = "SELECT session_user || ' ' || current_database() || ' ' || current_setting('client_encoding')"
    async with connected(database.writer_url) as connector, connector.transaction() as connection:
        assert (await connection.execute(text(query))).scalar_one() == f"plant_writer {database.name} UTF8"


async def test_limits_come_from_settings(database: MigratedDatabase) -> None:
    """Each timeout of the settings reaches the session."""
    changes = {
        "database_statement_timeout_seconds": 7,
        "database_lock_timeout_seconds": 3,
        "database_idle_in_transaction_timeout_seconds": 9,
    }
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    async with connected(database.writer_url, **changes) as connector, connector.transaction() as connection:
        assert [(await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names] == ["7s", "3s", "9s"]


async def test_a_slow_statement_is_stopped_named_and_logged(database: MigratedDatabase) -> None:
    """Past the statement timeout the server stops it; that is the one to look for in the log, with its text cut."""
    statement = f"SELECT pg_sleep(60) /* {'x' * 1000} */"
    settings = {"database_slow_query_milliseconds": 150, "database_statement_timeout_seconds": 1}
    with structlog.testing.capture_logs() as lines:
        async with connected(database.writer_url, **settings) as connector:
            with pytest.raises(StatementTimedOut, match="statement timeout"):
                async with connector.transaction() as connection:
                    await connection.execute(text(statement))
            async with connector.transaction() as connection:
                assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    slow = [line["statement"] for line in lines if line["event"] == "query.slow"]
    assert [each for each in slow if "pg_sleep" in each] == [statement[:500]]  # others may be slow on a busy machine


async def test_a_lock_is_waited_for_no_longer_than_told(database: MigratedDatabase) -> None:
    """A table that another session holds makes the statement give up, with an error of its own."""
    lock = text("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
    async with (
        connected(database.owner_url) as holder,
        connected(database.writer_url, database_lock_timeout_seconds=1) as connector,
        holder.transaction() as holding,
    ):
        await holding.execute(lock)
        with pytest.raises(LockTimedOut, match="lock timeout"):
            async with connector.transaction() as connection:
                await connection.execute(text("SELECT FROM checkpoints"))


async def test_a_slow_statement_is_logged_without_its_values(database: MigratedDatabase) -> None:
    """One line for a statement over the limit: its text and its time, no parameter; none for a quick one."""
    with structlog.testing.capture_logs() as lines:
        async with (
            connected(database.writer_url, database_slow_query_milliseconds=2_000) as connector,
            connector.transaction() as connection,
        ):
            await connection.execute(text("SELECT 1"))
            await connection.execute(text("SELECT pg_sleep(2.1),\n    :value || ''"), {"value": "secret-word"})
    slow = [line for line in lines if line["event"] == "query.slow"]
    assert [line["statement"] for line in slow] == ["SELECT pg_sleep(2.1), $1 || ''"]
    assert slow[0]["seconds"] >= 2.1
    assert (slow[0]["role"], slow[0]["application_name"]) == ("writer", "plant writer")
    assert "secret-word" not in str(lines)


@pytest.mark.parametrize(
    ("statement", "values", "named", "message"),
    [
        (
            "INSERT INTO checkpoints VALUES (:a, 't', -1, 0)",
            {"a": 1},
            ConstraintRefused,
            "checkpoints_partition_check",
        ),
        ("INSERT INTO checkpoints VALUES (:a, 't', 0, 0), (:a, 't', 0, 0)", {"a": 1}, ConstraintRefused, "pkey"),
        (
            "INSERT INTO checkpoints VALUES (:a, 't', 0, null)",
            {"a": 1},
            ConstraintRefused,
            "checkpoints.next_offset",
        ),
        (
            "SELECT CAST(CAST(:a AS text) AS int)",
            {"a": 1},
            ValueRefused,
            r"Invalid text representation \(SQLSTATE 22P02",
        ),
        ("SELECT CAST(:a AS int)", {"a": 1}, ValueRefused, r"argument \$1"),
        ("SELECT CAST(CAST(:a AS text) AS json)", {"a": 1}, ValueRefused, "22P02"),
    ],
)
async def test_errors_show_no_values(
    database: MigratedDatabase, statement: str, values: dict[str, int], named: type[Exception], message: str
) -> None:
    """A refused row or value is named by constraint, column or kind; the value is in no message and no traceback."""
    secret = "secret" + "-word"
    async with connected(database.writer_url) as connector:
        with pytest.raises(named, match=message) as error:
            async with connector.transaction() as connection:
                await connection.execute(text(statement), dict.fromkeys(values, secret))
    assert error.value.next_step  # type: ignore[attr-defined]
    assert secret not in "".join(traceback.format_exception(error.value))


async def test_a_restarted_server_is_used_again(private_stack: Stack) -> None:
    """All connections of a pool die with the server; while it is away that is named, and afterwards nothing fails."""
    url = private_stack.environ["PLANT_DATABASE_WRITER_URL"]
    async with connected(url, database_pool_size=4) as connector:

        async def ask() -> int:
            async with connector.transaction() as connection:
                return (await connection.execute(text("SELECT pg_backend_pid() FROM pg_sleep(0.05)"))).scalar_one()

        before = set(await asyncio.gather(*(ask() for _ in range(4))))
        await asyncio.to_thread(private_stack.kill_postgres)
        with pytest.raises(DatabaseUnreachable):
            await ask()
        await asyncio.to_thread(private_stack.start_postgres)
        after = set(await asyncio.gather(*(ask() for _ in range(8))))
    assert len(before) == len(after) == 4
    assert not before & after


async def test_connections_that_died_unseen_are_replaced(database: MigratedDatabase) -> None:
    """Backends that were ended while their connections lay in the pool cost no transaction."""
    ours = f"usename = 'plant_writer' AND datname = '{database.name}'"
    end = f"SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE {ours}"
    async with connected(database.writer_url, database_pool_size=3) as connector:

        async def ask() -> None:
            async with connector.transaction() as connection:
                await connection.execute(text("SELECT pg_sleep(0.05)"))

        await asyncio.gather(*(ask() for _ in range(3)))
        assert sql.value(database.superuser_url, end) == 3
        await asyncio.gather(*(ask() for _ in range(3)))


async def test_an_unresponsive_server_is_named_and_left(
    database: MigratedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a statement nor a beginning waits forever; once a server responds again, old connections cost nothing."""
    monkeypatch.setattr(engine, "CANCEL_TIMEOUT_SECONDS", -28)

    async def ask(connector: Database) -> None:
        async with connector.transaction() as connection:
            await connection.execute(text("SELECT pg_sleep(0.05)"))

    async def stop_responding_within(connector: Database) -> None:
        async with connector.transaction() as connection:
            await connection.execute(text("SELECT 1"))
            front.stop_responding()
            await connection.execute(text("SELECT 1"))

    async with unresponsive_front(database.writer_url) as front:
        settings = {"database_pool_size": 4, "database_statement_timeout_seconds": 30}
        async with connected(f"{front.address}?connect_timeout=3", **settings) as connector:
            await asyncio.gather(*(ask(connector) for _ in range(4)))
            with pytest.raises(DatabaseUnreachable, match="no answer in time"):
                await stop_responding_within(connector)
            # Short only while nothing answers: a busy machine may take longer to begin a transaction.
            with monkeypatch.context() as patched:
                patched.setattr(driver, "BEGIN_TIMEOUT_SECONDS", 0.3)
                with pytest.raises(DatabaseUnreachable, match="no answer in time"):
                    await ask(connector)
            front.respond()
            await asyncio.gather(*(ask(connector) for _ in range(8)))


async def test_sessions_that_the_server_is_ending_cost_nothing(database: MigratedDatabase) -> None:
    """A server has ended idle sessions, and the end of their connections is still under way: others are made."""
    async with (
        unresponsive_front(database.writer_url) as front,
        connected(front.address, database_pool_size=2) as connector,
    ):

        async def ask() -> int:
            async with connector.transaction() as connection:
                return (await connection.execute(text("SELECT pg_backend_pid() FROM pg_sleep(0.05)"))).scalar_one()

        before = set(await asyncio.gather(ask(), ask()))
        front.end_sessions()
        assert not before & set(await asyncio.gather(ask(), ask()))


async def test_an_address_may_name_the_server_in_a_parameter(database: MigratedDatabase) -> None:
    """As libpq's addresses do for a socket's folder or for several servers: the first that answers is taken."""
    url = urlsplit(database.writer_url)
    several = url._replace(
        netloc=f"{url.username}:{url.password}@", query=f"host=127.0.0.1:1&host={url.hostname}:{url.port}"
    )
    async with connected(several.geturl()) as connector:
        await connector.assert_least_privilege()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Certificate and key for `localhost` and for another host, each its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    return {name: make_certificate(folder, name, name) for name in ("localhost", "other.example")}


@pytest.mark.parametrize(
    ("mode", "presented", "trusted", "refused"),
    [
        ("require", "localhost", None, ""),
        ("require", "localhost", "other.example", "certificate verify failed"),
        ("verify-ca", "other.example", "other.example", ""),
        ("verify-ca", "localhost", "other.example", "certificate verify failed"),
        ("verify-full", "localhost", "localhost", ""),
        ("verify-full", "other.example", "other.example", "certificate"),
        ("verify-full", "localhost", "system", "certificate verify failed"),
    ],
)
async def test_tls_checks_what_the_address_asks_for(
    database: MigratedDatabase,
    certificates: dict[str, tuple[Path, Path]],
    mode: str,
    presented: str,
    trusted: str | None,
    refused: str,
) -> None:
    """As libpq does: `require` encrypts, `verify-ca` wants a known authority, `verify-full` the host's name as well."""
    address = urlsplit(database.writer_url)
    root = certificates[trusted][0] if trusted in certificates else trusted
    async with tls_front((str(address.hostname), address.port or 0), *certificates[presented]) as port:
        query = f"sslmode={mode}" + (f"&sslrootcert={root}" if root else "")
        place = f"{address.username}:{address.password}@localhost:{port}"
        async with connected(address._replace(netloc=place, query=query).geturl()) as connector:
            if refused:
                with pytest.raises(DatabaseUnreachable, match=refused):
                    await connector.assert_least_privilege()
            else:
                await connector.assert_least_privilege()


async def test_tls_is_not_given_up_for_a_server_without_it(database: MigratedDatabase) -> None:
    """A server that has no TLS is unreachable when the address requires it, and reached when it doesn't."""
    async with connected(f"{database.writer_url}?sslmode=require") as connector:
        with pytest.raises(DatabaseUnreachable, match="SSL"):
            await connector.assert_least_privilege()
    for mode in ("disable", "prefer"):
        async with connected(f"{database.writer_url}?sslmode={mode}") as connector:
            await connector.assert_least_privilege()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sslmode=maybe", "sslmode must be one of"),
        ("sslmode=verify-full&sslrootcert=/no/such/file", "sslrootcert: /no/such/file can't be used"),
        ("sslmode=require&sslcert=/no/such/file", "sslcert or sslkey"),
        ("connect_timeout=soon", "whole seconds"),
        ("passfile=x", "passfile is not known"),
    ],
)
def test_an_address_with_a_bad_parameter_is_refused(query: str, message: str) -> None:
    """What TLS can't be made of, and what Plant does not know, is reported before anything is connected."""
    with pytest.raises(BadDatabaseAddress, match=message):
        connect(Settings(database_url=f"postgresql://u:p@h/d?{query}"), "api")


def test_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    """Nobody is asked for its password: a service has no terminal."""
    certificate, key = make_certificate(tmp_path, "client", "localhost", password=b"secret-word")
    query = f"sslmode=require&sslcert={certificate}&sslkey={key}"
    with pytest.raises(BadDatabaseAddress, match="sslcert or sslkey"):
        connect(Settings(database_url=f"postgresql://u:p@h/d?{query}"), "api")


async def test_a_standby_serves_reads(private_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that allow it go to a streaming standby and can't write there; while it is gone they go to the primary."""
    monkeypatch.setattr(connector_module, "REPLICA_PAUSE_SECONDS", 0.05)
    private_stack.up()
    url = private_stack.environ["PLANT_DATABASE_API_URL"]
    where = text("SELECT pg_is_in_recovery()")

    async def on_standby(connector: Database, **options: object) -> bool:
        async with connector.transaction(replica=True, **options) as connection:  # type: ignore[arg-type]
            found: bool = (await connection.execute(where)).scalar_one()
            return found

    async def write(connector: Database) -> None:
        async with connector.transaction(replica=True) as connection:
            await connection.execute(text("CREATE TEMPORARY TABLE mine (a int)"))

    async def again(connector: Database) -> bool:
        return await on_standby(connector)

    with standby(private_stack) as copy:
        settings = Settings(database_api_url=url, database_api_replica_url=copy.address(url))
        connector = connect(settings, "api")
        try:
            assert await on_standby(connector)
            assert not await on_standby(connector, isolation="SERIALIZABLE")
            with pytest.raises(DBAPIError, match=r"read-only|recovery"):
                await write(connector)
            async with connector.transaction() as connection:
                assert not (await connection.execute(where)).scalar_one()
            await asyncio.to_thread(copy.kill)
            with structlog.testing.capture_logs() as lines:
                assert [await on_standby(connector) for _ in range(3)] == [False] * 3
            assert "replica.unreachable" in {line["event"] for line in lines}
            await asyncio.to_thread(copy.start)
            await wait_until_async(lambda: again(connector), "the standby is used again")
        finally:
            await connector.close()


async def test_reads_go_to_the_replica_while_it_answers(
    database: MigratedDatabase, make_database: Callable[[], MigratedDatabase]
) -> None:
    """A block that allows it reads from the replica, read only; without the replica it reads from the primary."""
    replica = make_database()
    where = text("SELECT current_database() || ' ' || current_setting('transaction_read_only')")

    async def asked(address: str) -> list[str]:
        connector = connect(Settings(database_api_url=database.api_url, database_api_replica_url=address), "api")
        found = []
        try:
            for allowed in (True, False):
                async with connector.transaction(replica=allowed) as connection:
                    found.append((await connection.execute(where)).scalar_one())
        finally:
            await connector.close()
        return found

    assert await asked(replica.api_url) == [f"{replica.name} on", f"{database.name} off"]
    gone = urlsplit(replica.api_url)._replace(netloc="plant_api:x@127.0.0.1:1").geturl()
    assert await asked(gone) == [f"{database.name} on", f"{database.name} off"]
