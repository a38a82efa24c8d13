"""Databases in which the first ranges of the log are there: tests that write rows alone leave them to be used again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from devstack import postgres
from tests.conftest import _in_database
from tests.support import batches, log_tables
from tests.support.databases import Databases
from tests.support.services import Services


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies of the migrated database with those ranges, which tests use one after another."""
    name = f"plant_template_{secrets.token_hex(4)}"
    postgres.create_database(stack.superuser_url, name, template=template_database)
    owner_url = _in_database(stack.environ["PLANT_DATABASE_OWNER_URL"], name)
    log_tables.make_first_ranges(owner_url, batches.TOPIC, batches.PARTITIONS)
    made = Databases(stack.superuser_url, name, _in_database)
    yield made
    made.close()
    postgres.drop_database(stack.superuser_url, name)
