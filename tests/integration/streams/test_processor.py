"""The processor: publishing Genesis events from code, and waiting for a read model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from database.connector import connect
from operations.services.processor import build_processor
from runtime.settings import Settings
from schemas.clock_fields import is_clock_stamped, without_clock_fields
from schemas.entity_states import AgentState, IndustryState, JobRoleState, SkillState, TeamState
from schemas.errors import Unencodable
from schemas.events import (
    EVENT_TYPES,
    NIL_ID,
    AgentAvailable,
    AgentOnboarded,
    AgentRated,
    EntityAmended,
    EntityRetired,
    Event,
    IndustryDefined,
    JobRoleDefined,
    SkillRegistered,
    SkillValidated,
    TeamFormed,
)
from streams.catalogue_processor import EntityState
from streams.errors import CaughtUpTooLate
from streams.processor import GenesisEventProcessor
from streams.record_position import RecordPosition
from tests.support.waiting import DEADLINE_SECONDS
from tests.support.webhooks import read_all

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
ONE, TWO = UUID(int=1), UUID(int=2)
STATE = TeamState(name="Night shift", description="", member_ids=(ONE,))
STATES: list[EntityState] = [
    STATE,
    AgentState(name="Agent", skill_ids=(), status="onboarded", available=True),
    SkillState(name="Soldering", description="", category="technical"),
    JobRoleState(name="Solderer", description="", required_skill_ids=(TWO,)),
    IndustryState(name="Metal", description=""),
]


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


Call = Callable[..., Awaitable[RecordPosition]]

CALLS: dict[type[Event], Callable[[GenesisEventProcessor], Call]] = {
    AgentOnboarded: lambda each: partial(each.process_agent_onboarded, ONE, name="Agent"),
    AgentAvailable: lambda each: partial(each.process_agent_available, ONE, available=False),
    AgentRated: lambda each: partial(each.process_agent_rated, ONE, rater_id=TWO, rating=4),
    SkillValidated: lambda each: partial(each.process_skill_validated, ONE, validator_id=TWO, score=70),
    SkillRegistered: lambda each: partial(each.process_skill_registered, ONE, name="Soldering", category="technical"),
    JobRoleDefined: lambda each: partial(
        each.process_job_role_defined, ONE, name="Solderer", seniority="mid", required_skill_ids={TWO, ONE}
    ),
    IndustryDefined: lambda each: partial(each.process_industry_defined, ONE, name="Metal", external_id="C25"),
    TeamFormed: lambda each: partial(each.process_team_formed, ONE, name="Night shift", member_ids=[TWO, ONE]),
    EntityAmended: lambda each: partial(each.process_entity_amended, ONE, STATE),
    EntityRetired: lambda each: partial(each.process_entity_retired, ONE, STATE),
}
"""Each event type to the call that publishes it."""


def test_every_genesis_event_has_its_call() -> None:
    """A new event type needs one, too."""
    genesis = {event for name, event in EVENT_TYPES.items() if name.startswith("genesis.")}
    assert set(CALLS) == genesis


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
async def test_a_call_returns_the_position_of_its_record(settings: Settings, topic: str, kind: type[Event]) -> None:
    """The record there is the event, with what the call was given."""
    async with build_processor(settings, events_topic=topic) as processor:
        position = await CALLS[kind](processor)(occurred_at=NOW)
    (received,) = await read_all(settings, topic)
    assert received.position == position
    event = received.event
    assert (type(event), event.entity_id, event.occurred_at) == (kind, ONE, NOW)
    if isinstance(event, EntityAmended | EntityRetired):
        assert (event.entity_type, event.team) == ("team", STATE)
    if isinstance(event, JobRoleDefined):
        assert event.required_skill_ids == (ONE, TWO), "a set has one order"
    if isinstance(event, TeamFormed):
        assert event.member_ids == (TWO, ONE), "a list keeps its own"


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
async def test_a_call_is_safe_to_repeat(settings: Settings, topic: str, kind: type[Event]) -> None:
    """With a message id it is the same event, though the clock has gone on; without one it is another."""
    async with build_processor(settings, events_topic=topic) as processor:
        call = CALLS[kind](processor)
        for message_id in ("m1", "m1", "", ""):
            await call(message_id=message_id)
    received = await read_all(settings, topic)
    events = [each.event for each in sorted(received, key=lambda each: each.position.offset)]
    first, second, third, fourth = events
    assert without_clock_fields(first) == without_clock_fields(second)
    assert len({first.event_id, third.event_id, fourth.event_id}) == 3
    assert all(is_clock_stamped(each.headers) for each in received), "times are not compared then"


async def test_a_rating_of_the_nil_skill_is_refused(settings: Settings, topic: str) -> None:
    """It would count as one of the agent as a whole; the null id does, and is published."""
    async with build_processor(settings, events_topic=topic) as processor:
        with pytest.raises(Unencodable, match="skill_id is the nil id"):
            await processor.process_agent_rated(ONE, rater_id=TWO, rating=5, skill_id=NIL_ID)
        await processor.process_agent_rated(ONE, rater_id=TWO, rating=5)
    assert len(await read_all(settings, topic)) == 1


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
async def test_a_state_says_which_kind_of_entity_it_is(settings: Settings, topic: str, state: EntityState) -> None:
    """Each kind's state goes into the field of its name, and no other is set."""
    async with build_processor(settings, events_topic=topic) as processor:
        await processor.process_entity_amended(ONE, state)
    (received,) = await read_all(settings, topic)
    event = received.event
    assert isinstance(event, EntityAmended)
    assert getattr(event, event.entity_type) == state
