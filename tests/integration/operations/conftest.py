"""Topics that a database is recovered from."""

from __future__ import annotations

import pytest_asyncio

from operations.recovery import RecoveredTopics
from runtime.settings import Settings
from streams.topics import apply
from tests.conftest import MakeTopic
from tests.support.recovering import PARTITIONS


@pytest_asyncio.fixture
async def recovered_topics(settings: Settings, make_topic: MakeTopic) -> RecoveredTopics:
    """Topics of a test's own; operators' actions are recorded on the catalogue's."""
    await apply(settings)
    events_topic = await make_topic(PARTITIONS)
    operations = await make_topic(1, family="plant.operations")
    dead = await make_topic(1, family="genesis.events.dead")
    return RecoveredTopics(events=events_topic, operations=operations, dead_letters=dead)
