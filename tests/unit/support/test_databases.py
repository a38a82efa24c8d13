"""Databases that tests use one after another: each is as the template, whatever the test before has done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from devstack import sql
from tests.support.databases import Databases, KeptConnection
from tests.support.services import Services

INSERT = "INSERT INTO producers (name) VALUES ('left')"


@pytest.fixture
def own_databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """A pool that no other test uses."""
    made = Databases(stack.superuser_url, template_database, within)
    yield made
    made.close()


def within(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def number_of(stack: Services, name: str) -> int | None:
    """Return the database's number, which a new name leaves as it is."""
    found = sql.value(stack.superuser_url, f"SELECT oid::bigint FROM pg_database WHERE datname = '{name}'")
    return None if found is None else int(found)


def test_rows_are_removed_and_the_name_is_another(stack: Services, own_databases: Databases) -> None:
    """A database in which rows were written, and a session is left, serves again under a new name."""
    first = own_databases.take()
    number = number_of(stack, first)
    sql.execute(
        within(stack.superuser_url, first),
        [INSERT, "SELECT nextval('outbox_id_seq')", "CREATE TEMPORARY TABLE gone (n int)"],
    )

    own_databases.give_back(first)
    second = own_databases.take()

    assert number_of(stack, first) is None
    assert number_of(stack, second) == number
    assert sql.value(within(stack.superuser_url, second), "SELECT count(*) FROM producers") == 0
    assert sql.value(within(stack.superuser_url, second), "SELECT nextval('outbox_id_seq')") == 1
    own_databases.give_back(second)


def test_catalogs_are_compared_only_once_they_were_changed(
    stack: Services, own_databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are no change of them, and reading all of them takes half of the time; temporary tables are one."""
    compared: list[str] = []
    catalog_rows = Databases._catalog_rows

    async def counted(self: Databases, connection: Any) -> str:
        compared.append(name)
        return await catalog_rows(self, connection)

    name = own_databases.take()
    own_databases.give_back(name)
    monkeypatch.setattr(Databases, "_catalog_rows", counted)
    for number, statement in enumerate((INSERT, "CREATE TEMPORARY TABLE gone (n int)", INSERT), 1):
        name = own_databases.take()
        sql.execute(within(stack.superuser_url, name), [statement])
        own_databases.give_back(name)
        assert len(compared) == (number > 1)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE left_over ()",
        "ALTER TABLE producers ADD COLUMN more int",
        "CREATE FUNCTION left_over() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION refuse_change() COST 7",
        "DROP TRIGGER append_only ON log_records",
        "ALTER TABLE log_records DISABLE TRIGGER ALL",
        "GRANT SELECT ON producers TO PUBLIC",
        "REVOKE SELECT ON producers FROM plant_ingress",
        "DROP POLICY outside_boundaries ON outbox",
        "UPDATE alembic_version SET version_num = 'other'",
        f"{INSERT}; ANALYZE producers",
        "ALTER DATABASE {name} SET work_mem = '1MB'",
        "ALTER DATABASE {name} CONNECTION LIMIT 7",
        "GRANT CREATE ON DATABASE {name} TO plant_api",
    ],
)
@pytest.mark.parametrize("used", [False, True], ids=["a copy", "one that was put back"])
def test_what_is_more_than_rows_ends_a_database(
    stack: Services, own_databases: Databases, statement: str, used: bool
) -> None:
    """After it the next test gets another copy."""
    name = own_databases.take()
    if used:
        own_databases.give_back(name)
        name = own_databases.take()
    sql.execute(within(stack.superuser_url, name), [statement.format(name=name)])

    own_databases.give_back(name)

    assert number_of(stack, name) is None
    assert own_databases._clean == []


def test_a_kept_connection_that_was_ended_is_replaced(stack: Services) -> None:
    """A statement runs once, on another connection where the server has ended the one before; what is wrong fails."""
    kept = KeptConnection(stack.superuser_url)
    try:
        kept.execute("SET application_name = 'plant_kept'")
        ours = "pg_stat_activity WHERE application_name = 'plant_kept'"
        assert sql.value(stack.superuser_url, f"SELECT bool_and(pg_terminate_backend(pid, 60000)) FROM {ours}")
        kept.execute("SET application_name = 'plant_kept'")
        assert sql.value(stack.superuser_url, f"SELECT count(*) FROM {ours}") == 1
        with pytest.raises(asyncpg.UndefinedObjectError):
            kept.execute("DROP ROLE plant_nobody")
    finally:
        kept.close()
