"""Roles of a test's own, with rights that Plant's have not: fixture `make_role`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from devstack import sql
from tests.conftest import Database


@pytest.fixture
def make_role(database: Database) -> Iterator[Callable[[str], str]]:
    """Makes a role that may enter the database, and gives its address; it goes when the test ends."""
    made: list[str] = []

    def make(attributes: str = "") -> str:
        name, password = f"plant_test_{secrets.token_hex(6)}", secrets.token_hex(8)
        create = f"CREATE ROLE {name} LOGIN PASSWORD '{password}' {attributes}"
        sql.execute(database.superuser_url, [create, f"GRANT CONNECT, TEMPORARY ON DATABASE {database.name} TO {name}"])
        made.append(name)
        superuser = urlsplit(database.superuser_url)
        return superuser._replace(netloc=f"{name}:{password}@{superuser.hostname}:{superuser.port}").geturl()

    yield make
    for name in made:
        sql.execute(database.superuser_url, [f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}"])
