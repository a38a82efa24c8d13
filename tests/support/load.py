"""Seeded events, straight onto a topic: the fastest way to fill one, past ingress."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

from confluent_kafka import Producer

from runtime.settings import Settings
from schemas import codec
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, Event, SkillRegistered, SkillValidated

SOURCE = "plant/benchmark"
START = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = ("soldering", "drawing", "wiring", "testing", "planning", "welding", "teaching", "writing", "nursing", "baking")


def events(count: int, *, agents: int = 1000, seed: int = 1) -> Iterator[Event]:
    """A mix of agent events over `agents` entities: 40 % onboarded (3 skills each), 40 % available, 20 % rated."""
    chance = random.Random(seed)
    uuid = lambda: UUID(int=chance.getrandbits(128))  # noqa: E731
    agent_ids = [uuid() for _ in range(agents)]
    skills = [uuid() for _ in range(900)]
    industries = [uuid() for _ in range(20)]
    for number in range(count):
        agent_id, event_id = chance.choice(agent_ids), uuid()
        occurred_at = START + timedelta(milliseconds=number)
        kind = chance.random()
        if kind < 0.4:
            yield AgentOnboarded(
                event_id=event_id,
                agent_id=agent_id,
                occurred_at=occurred_at,
                name=f"agent {number % agents}",
                industry_id=chance.choice(industries),
                skill_ids=tuple(chance.sample(skills, 3)),
            )
        elif kind < 0.8:
            yield AgentAvailable(event_id=event_id, agent_id=agent_id, occurred_at=occurred_at, available=kind < 0.6)
        else:
            yield AgentRated(
                event_id=event_id,
                agent_id=agent_id,
                occurred_at=occurred_at,
                rater_id=agent_ids[0],
                rating=1 + number % 5,
            )


def events_of_all_models(count: int, *, agents: int = 1000, skills: int = 900, seed: int = 1) -> Iterator[Event]:
    """A mix in which every read model has work: 25 % each onboarded, available and rated, and 25 % about skills.

    Of the ratings half name a skill. Of what is about skills two fifths register one, again and again under other
    names, and three fifths validate one.
    """
    chance = random.Random(seed)
    uuid = lambda: UUID(int=chance.getrandbits(128))  # noqa: E731
    agent_ids, skill_ids = [uuid() for _ in range(agents)], [uuid() for _ in range(skills)]
    industries = [uuid() for _ in range(20)]
    for number in range(count):
        event_id, agent_id, skill_id = uuid(), chance.choice(agent_ids), chance.choice(skill_ids)
        occurred_at = START + timedelta(milliseconds=number)
        match number % 20:
            case 0 | 4 | 8 | 12 | 16:
                yield AgentOnboarded(
                    event_id=event_id,
                    agent_id=agent_id,
                    occurred_at=occurred_at,
                    name=f"agent {number % agents}",
                    industry_id=chance.choice(industries),
                    skill_ids=tuple(chance.sample(skill_ids, 3)),
                )
            case 1 | 5 | 9 | 13 | 17:
                yield AgentAvailable(
                    event_id=event_id, agent_id=agent_id, occurred_at=occurred_at, available=chance.random() < 0.5
                )
            case 2 | 6 | 10 | 14 | 18:
                yield AgentRated(
                    event_id=event_id,
                    agent_id=agent_id,
                    occurred_at=occurred_at,
                    rater_id=agent_ids[0],
                    rating=chance.randint(1, 5),
                    skill_id=skill_id if chance.random() < 0.5 else None,
                )
            case 3 | 11:
                yield SkillRegistered(
                    event_id=event_id,
                    skill_id=skill_id,
                    occurred_at=occurred_at,
                    name=f"skill {chance.choice(WORDS)} {chance.choice(WORDS)}",
                    description=" ".join(chance.choices(WORDS, k=8)),
                    category="technical",
                )
            case _:
                yield SkillValidated(
                    event_id=event_id,
                    skill_id=skill_id,
                    occurred_at=occurred_at,
                    agent_id=agent_id,
                    validator_id=agent_ids[0],
                    score=chance.randint(0, 100),
                )


def some_events(count: int, seed: int = 1, agents: int = 20) -> list[Event]:
    """Return events of a few agents, so that each has several."""
    return list(events(count, agents=agents, seed=seed))


def fill(settings: Settings, topic: str, load: Iterator[Event]) -> int:
    """Publish events to a topic; returns how many."""
    return fill_values(settings, topic, ((event, codec.encode(event)) for event in load))


def fill_values(settings: Settings, topic: str, load: Iterator[tuple[Event, bytes]]) -> int:
    """Publish values to a topic with librdkafka, idempotent, under keys and headers of events; returns how many."""
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka_address(),
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000,
            "partitioner": "murmur2_random",
        }
    )
    count = 0
    for event, value in load:
        headers, key = codec.headers(event, SOURCE), codec.key(event)
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
    started = time.monotonic()
    if producer.flush(300):
        raise TimeoutError(f"not all of {count} events were acknowledged after {time.monotonic() - started:.0f} s")
    return count
