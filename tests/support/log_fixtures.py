"""A database with a log to tamper with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Database
from tests.support import log_rows
from tests.support.log_rows import Row
from tests.support.services import Services


@pytest.fixture(scope="module")
def module_database(stack: Services, template_database: str) -> Iterator[Database]:
    """One migrated database for a module: its tests share it."""
    with log_rows.migrated_database(stack, template_database) as made:
        yield made


@pytest.fixture
def log_database(module_database: Database) -> Database:
    """The module's database with an empty log."""
    log_rows.empty(module_database)
    return module_database


@pytest.fixture
def stored_log(log_database: Database) -> list[Row]:
    """A stored chain of 20 entries, offsets 3 to 25."""
    rows = log_rows.log()
    log_rows.store(log_database, rows)
    return rows
