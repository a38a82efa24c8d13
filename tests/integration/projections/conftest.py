"""Databases in which the first ranges of the log are there: tests that write rows alone leave them to be used again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from database.connector import Database as Connector
from database.connector import connect
from projections.install import install
from projections.read_model import READ_MODELS
from tests.conftest import Database, SettingsFor
from tests.support.databases import Databases
from tests.support.lagging_worker import clock, make_worker, worker  # noqa: F401 (fixtures)
from tests.support.made_models import AGENTS
from tests.support.ranged_databases import copies_with_ranges
from tests.support.services import Services


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies of the migrated database with those ranges, which tests use one after another.

    One read model is there: tests of the engine count its statements and checkpoints. `install` adds the others.
    """
    with copies_with_ranges(stack, template_database, [model for model in READ_MODELS if model != AGENTS]) as made:
        yield made


@pytest_asyncio.fixture
async def api(database: Database, settings_for: SettingsFor) -> AsyncIterator[Connector]:
    """What readers use, with every read model installed."""
    install(database.owner_url)
    connector = connect(settings_for(database), "api")
    yield connector
    await connector.close()
