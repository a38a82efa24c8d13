"""What tests of deliverers stand on: settings for endpoints on this machine, and topics of a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import pytest_asyncio

from deliveries.deliverer.delivery_process import DeliveryTopics
from runtime.settings import Settings
from tests.support.databases import Databases
from tests.support.delivering import LOCAL, delivery_topics
from tests.support.ranged_databases import copies_with_ranges
from tests.support.services import Services


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies in which the first ranges of the log and the days' tables of deliveries are there."""
    with copies_with_ranges(stack, template_database, delivery_days=True) as made:
        yield made


@pytest.fixture
def local(settings: Settings) -> Settings:
    """Settings with which endpoints may be on this machine."""
    return msgspec.structs.replace(settings, **LOCAL)


@pytest_asyncio.fixture
async def topics(local: Settings) -> AsyncIterator[DeliveryTopics]:
    """Topics of a test's own."""
    async with delivery_topics(local) as made:
        yield made
