"""What tests of deliverers stand on: settings for endpoints on this machine, and topics of a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from deliveries.deliverer.delivery_process import DeliveryTopics
from runtime.settings import Settings
from tests.support.delivering import LOCAL, delivery_topics


@pytest.fixture
def local(settings: Settings) -> Settings:
    """Settings with which endpoints may be on this machine."""
    return msgspec.structs.replace(settings, **LOCAL)


@pytest_asyncio.fixture
async def topics(local: Settings) -> AsyncIterator[DeliveryTopics]:
    """Topics of a test's own."""
    async with delivery_topics(local) as made:
        yield made
