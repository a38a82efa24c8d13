"""Databases in which the first ranges of the log are there: tests that write rows alone leave them to be used again."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from database.connector import Database as Connector
from database.connector import connect
from devstack import postgres, sql
from projections.install import install
from projections.read_model import READ_MODELS
from tests.conftest import Database, SettingsFor, _in_database
from tests.support import batches, log_tables
from tests.support.databases import Databases
from tests.support.lagging_worker import clock, make_worker, worker  # noqa: F401 (fixtures)
from tests.support.made_models import AGENTS
from tests.support.services import Services


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies of the migrated database with those ranges, which tests use one after another.

    One read model is there: tests of the engine count its statements and checkpoints. `install` adds the others.
    """
    name = f"plant_template_{secrets.token_hex(4)}"
    postgres.create_database(stack.superuser_url, name, template=template_database)
    owner_url = _in_database(stack.environ["PLANT_DATABASE_OWNER_URL"], name)
    log_tables.make_first_ranges(owner_url, batches.TOPIC, batches.PARTITIONS)
    others = [model for model in READ_MODELS if model != AGENTS]
    sql.execute(
        _in_database(stack.superuser_url, name),
        [
            *(f"DROP SCHEMA {model.schema} CASCADE" for model in others),
            "DELETE FROM read_model_builds WHERE projection <> 'agents'",
        ],
    )
    made = Databases(stack.superuser_url, name, _in_database)
    yield made
    made.close()
    postgres.drop_database(stack.superuser_url, name)


@pytest_asyncio.fixture
async def api(database: Database, settings_for: SettingsFor) -> AsyncIterator[Connector]:
    """What readers use, with every read model installed."""
    install(database.owner_url)
    connector = connect(settings_for(database), "api")
    yield connector
    await connector.close()
