"""Batches for tests of the engine, made without Kafka."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from audit.canonical import headers_bytes
from schemas import codec
from schemas.entity_states import AgentState, TeamState
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, EntityAmended, EntityRetired, Event, TeamFormed
from streams.batch import EventBatch
from streams.watermarks import Leadership, Watermarks

TOPIC = "genesis.events"
PARTITIONS = 4
TOPIC_ID = UUID("6f1d3c3e-4f0a-4a53-9c57-2d0a0a6a7c11")
WATERMARKS = Watermarks(low=0, high=10_000_000, partition_count=PARTITIONS, leadership=Leadership(TOPIC_ID, 0))

Record = tuple[bytes | None, bytes | None]
"""A key and a value."""


def record(event: Event) -> Record:
    """What ingress would publish."""
    return codec.key(event), codec.encode(event)


def batch_of(records: Sequence[Event | Record], *, token: int, start: int = 0, partition: int = 0) -> EventBatch:
    """A slice without gaps that begins at `start`."""
    pairs = [record(item) if isinstance(item, Event) else item for item in records]
    offsets = list(range(start, start + len(pairs)))
    return EventBatch(
        topic=TOPIC,
        partition=partition,
        token=token,
        fetched_from=start,
        next_offset=start + len(pairs),
        offsets=offsets,
        timestamps_ms=[1_760_000_000_000 + offset for offset in offsets],
        keys=[key for key, _ in pairs],
        values=[value for _, value in pairs],
        headers=[headers_bytes([("ce_specversion", b"1.0"), ("ce_source", b"test")])] * len(pairs),
    )


def events_of_agents_and_teams(count: int, *, seed: int, entities: int = 6) -> list[Event]:
    """Return events of every type that the read model `agents` reads, and of teams; both have the same few ids."""
    chance = random.Random(seed)
    ids = [UUID(int=number + 1) for number in range(entities)]
    made: list[Event] = []
    for number in range(count):
        occurred_at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        entity_id, same = chance.choice(ids), {"event_id": UUID(int=seed << 32 | number), "occurred_at": occurred_at}
        some_id = UUID(int=chance.getrandbits(128)) if chance.random() < 0.5 else None
        skill_ids = tuple(UUID(int=chance.getrandbits(128)) for _ in range(chance.randrange(3)))
        agent = AgentState(
            name=f"amended {number}", team_id=some_id, skill_ids=skill_ids, status="on leave", available=number % 2 == 0
        )
        team = TeamState(name=f"team {number}", description="", member_ids=skill_ids)
        state = {"entity_type": "agent", "agent": agent} if number % 3 else {"entity_type": "team", "team": team}
        kinds: list[Event] = [
            AgentOnboarded(
                agent_id=entity_id, name=f"agent {number}", industry_id=some_id, skill_ids=skill_ids, **same
            ),
            AgentAvailable(
                agent_id=entity_id, available=number % 2 == 0, available_from=occurred_at if some_id else None, **same
            ),
            EntityAmended(entity_id=entity_id, **state, **same),
            EntityRetired(entity_id=entity_id, **state, **same),
            AgentRated(agent_id=entity_id, rater_id=entity_id, rating=5, **same),
            TeamFormed(team_id=entity_id, name=team.name, description="", member_ids=(), **same),
        ]
        made.append(chance.choice(kinds))
    return made
