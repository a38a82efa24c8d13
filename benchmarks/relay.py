"""The relay: how fast a backlog of the outbox reaches Kafka and is marked, in three shapes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import asyncpg
import uvloop

from benchmarks.stage import Stage, clean_database
from devstack.stack import Stack
from relay.relay import Relay
from streams import topics

ROWS = 20_000

FILL = """
INSERT INTO outbox (event_type, entity_id, entity_type, governance_agent_id, version, occurred_at, state)
SELECT 'genesis.entity.amended', md5($2::text || n / $3::bigint)::uuid, 'skill', 'genesis', n % $3::bigint + 1,
       clock_timestamp(),
       jsonb_build_object('name', 'skill ' || n, 'description', repeat('What it is, in words. ', 5),
                          'category', 'technical', 'external_id', 'http://example.org/skill/' || n, 'status', 'active',
                          'tags', '[]'::jsonb, 'custom_attributes', '{}'::jsonb, 'deleted_at', null)
FROM generate_series(0, $1::bigint - 1) AS n
"""


@dataclass(frozen=True)
class Shape:
    """A backlog: how many rows each entity has, and how many sent rows lie in the table next to it."""

    name: str
    rows: int
    rows_an_entity: int = 1
    sent_before: int = 0


SHAPES = (
    Shape("distinct entities", ROWS),
    Shape("ten rows an entity", ROWS, 10),
    Shape("one entity", ROWS // 20, ROWS),
    Shape("distinct entities, next to 1 M sent rows", ROWS, sent_before=1_000_000),
)


def run(stack: Stack) -> list[dict[str, object]]:
    """Every shape, on a clean database and the topic as it is."""
    return [_measure(stack, shape) for shape in SHAPES]


def _measure(stack: Stack, shape: Shape) -> dict[str, object]:
    with clean_database(stack) as stage:
        asyncio.run(topics.apply(stage.settings))
        asyncio.run(_fill(stage, shape))
        before, started = stage.cpu_seconds(), time.perf_counter()
        sent = uvloop.run(Relay(stage.settings).once())
        seconds = time.perf_counter() - started
        assert sent == shape.rows
        cores = {part: round((spent - before[part]) / seconds, 2) for part, spent in stage.cpu_seconds().items()}
    return {
        "name": shape.name,
        "rows": sent,
        "seconds": round(seconds, 2),
        "rows_per_second": round(sent / seconds),
        "cores_used": cores,
    }


async def _fill(stage: Stage, shape: Shape) -> None:
    connection = await asyncpg.connect(stage.superuser_url)
    try:
        if shape.sent_before:
            await connection.execute(FILL, shape.sent_before, "sent", 1)
            await connection.execute("UPDATE outbox SET sent_at = now()")
        await connection.execute(FILL, shape.rows, "unsent", shape.rows_an_entity)
        await connection.execute("VACUUM ANALYZE outbox")
    finally:
        await connection.close()
