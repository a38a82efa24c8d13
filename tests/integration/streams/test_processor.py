"""The processor: publishing Genesis events from code, and waiting for a read model."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from database.connector import connect
from operations.services.processor import build_processor
from runtime.settings import Settings
from schemas.clock_fields import is_clock_stamped
from schemas.events import AgentOnboarded
from streams.errors import CaughtUpTooLate
from streams.record_position import RecordPosition
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import read_all

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


async def test_the_processor_publishes_all_four(settings: Settings, topic: str) -> None:
    """Each call publishes its event; the same message id is the same event."""
    agent, skill, someone = uuid4(), uuid4(), uuid4()
    async with build_processor(settings, events_topic=topic) as processor:
        await processor.process_agent_onboarded(agent, skill_ids=[skill])
        await processor.process_skill_validated(skill, validator_id=someone, score=80, agent_id=agent)
        await processor.process_agent_rated(agent, rater_id=someone, rating=5, occurred_at=NOW)
        await processor.process_agent_available(agent, message_id="m1")
        await processor.process_agent_available(agent, message_id="m1")
    events = [received.event for received in await read_all(settings, topic)]
    assert sorted(event.event_type for event in events) == [
        "genesis.agent.available",
        "genesis.agent.available",
        "genesis.agent.onboarded",
        "genesis.agent.rated",
        "genesis.skill.validated",
    ]
    assert len({event.event_id for event in events}) == 4
    assert [event.name for event in events if isinstance(event, AgentOnboarded)] == [str(agent)]
    received = await read_all(settings, topic)
    stamped = {each.event.event_type for each in received if is_clock_stamped(each.headers)}
    assert stamped == {event.event_type for event in events} - {"genesis.agent.rated"}, "its caller gave the time"
    senders = [dict(each.headers) for each in received]
    assert {sender["plant_producer"] for sender in senders} == {b"processor"}
    assert [sender["plant_message_id"] for sender in senders if "plant_message_id" in sender] == [b"m1", b"m1"]


async def test_a_set_of_skills_has_one_order(settings: Settings, topic: str) -> None:
    """A repeated call may walk it in another order, and is the same event all the same; a list keeps its own."""
    first, last = UUID(int=1 << 70), UUID(int=1 << 71)
    async with build_processor(settings, events_topic=topic) as processor:
        for skills in ([last, first], {last, first}, frozenset([first, last])):
            await processor.process_agent_onboarded(UUID(int=1), skill_ids=skills, message_id="m1", occurred_at=NOW)
    events = [received.event for received in await read_all(settings, topic)]
    skill_ids = [event.skill_ids for event in events if isinstance(event, AgentOnboarded)]
    assert skill_ids == [(last, first), (first, last), (first, last)]


async def test_waiting_for_a_read_model(settings: Settings, topic: str) -> None:
    """wait_for returns when the checkpoint has passed the position, and gives up in time."""
    position = RecordPosition(topic, 0, 5)
    writer = connect(settings, "writer")

    async def advance(next_offset: int) -> None:
        async with writer.transaction() as connection:
            await connection.execute(
                text(
                    "INSERT INTO model_checkpoints VALUES ('agents', 1, :topic, 0, :next)"
                    " ON CONFLICT (projection, version, topic, partition) DO UPDATE SET next_offset = :next"
                ),
                {"topic": topic, "next": next_offset},
            )

    async with build_processor(settings, events_topic=topic) as processor:
        with pytest.raises(CaughtUpTooLate, match="It is at offset 0"):
            await processor.wait_for(position, timeout_seconds=0.05)
        await advance(5)
        waiting = asyncio.create_task(processor.wait_for(position, timeout_seconds=DEADLINE_SECONDS))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        await advance(6)
        await waiting
    await writer.close()
