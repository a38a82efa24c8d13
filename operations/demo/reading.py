"""The demo's queries: checkpoints, log ends, dispositions, the read model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from sqlalchemy import text

from database.connector import Database
from entities.vocabulary import DEFAULT_TENANT
from runtime.settings import Settings
from streams.errors import KafkaUnavailable
from streams.kafka.clients import make_consumer
from streams.topics import describe

_CHECKPOINTS = text("""
    SELECT topic, partition, min(next_offset) FILTER (WHERE projection = 'log') AS log,
           min(next_offset) FILTER (WHERE projection = 'agents') AS agents
    FROM checkpoints GROUP BY topic, partition ORDER BY topic, partition
""")

_DISPOSITIONS = text("""
    SELECT e.disposition, count(*) AS records
    FROM unnest(CAST(:partitions AS int[]), CAST(:offsets AS bigint[])) AS run (partition, first)
    JOIN event_stream AS e ON e.topic = :topic AND e.partition = run.partition AND e."offset" >= run.first
    GROUP BY e.disposition ORDER BY e.disposition
""")

_AGENTS = text("""
    SELECT agent_id, name, job_role_id, skill_ids, status, available, available_from
    FROM read_models.agents WHERE agent_id = ANY(CAST(:ids AS uuid[])) ORDER BY name
""")

_DEMO_KEYS = text("SELECT count(*) FROM webhook_signatures WHERE producer = :producer")


async def checkpoints(database: Database) -> dict[tuple[str, int], tuple[int, int]]:
    """Return, by topic and partition, the next offsets of the log and of the read model `agents`."""
    async with database.transaction() as connection:
        rows = (await connection.execute(_CHECKPOINTS)).all()
    return {(row.topic, row.partition): (row.log or 0, row.agents or 0) for row in rows}


async def dispositions(database: Database, topic: str, first_offsets: Mapping[int, int]) -> dict[str, int]:
    """Count the records from these offsets on by disposition."""
    values = {"topic": topic, "partitions": list(first_offsets), "offsets": list(first_offsets.values())}
    async with database.transaction() as connection:
        return {row.disposition: row.records for row in await connection.execute(_DISPOSITIONS, values)}


async def agents(database: Database, ids: Sequence[UUID]) -> list[Any]:
    """Return rows of the read model `agents`, by name."""
    async with database.transaction(DEFAULT_TENANT, read_only=True) as connection:
        return list((await connection.execute(_AGENTS, {"ids": list(ids)})).all())


async def keys_made(database: Database, producer: str) -> int:
    """Count the keys that a producer has had. As plant_api."""
    async with database.transaction() as connection:
        count: int = (await connection.execute(_DEMO_KEYS, {"producer": producer})).scalar_one()
    return count


async def log_ends(settings: Settings, topics: Sequence[str]) -> dict[tuple[str, int], int]:
    """Return, by topic and partition, the offset after the last record, from the broker."""
    known = await describe(settings, topics)
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(known[topic].partitions)]
    consumer = make_consumer(settings, isolation_level="read_committed")
    try:
        await consumer.start()
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailable(why=f"{type(error).__name__} when asked where the log ends.") from error
    finally:
        await consumer.stop()
    return {(where.topic, where.partition): end for where, end in sorted(ends.items())}
