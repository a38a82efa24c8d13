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
from schemas.events import AgentAvailable, AgentOnboarded, AgentRated, Event

SOURCE = "plant/benchmark"
START = datetime(2026, 1, 1, tzinfo=UTC)


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
