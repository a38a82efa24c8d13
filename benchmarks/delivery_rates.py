"""What goes before and after attempts: a dispatcher with many endpoints, and the recorder of attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

import psutil

from benchmarks.delivering import (
    DATA,
    LOCAL,
    MATCHES,
    PARTITIONS,
    add_endpoints,
    deliverer,
    make_topics,
    new_generation,
    publish_records,
)
from benchmarks.stage import Stage, clean_database, process, tree_cpu_seconds
from devstack.stack import Stack
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from schemas.events import AgentAvailable
from streams import topics
from streams.producer import EventProducer
from streams.topics import EVENTS_TOPIC
from tests.support.waiting import wait_until

EVENTS = 40_000
ENDPOINTS = 10_000
ATTEMPTS = 200_000
NAMESPACE = UUID("6b0e6c1c-51d0-4f0e-8a1c-3f1f4f5f2f67")
TIMEOUT_SECONDS = 300.0

LOGGED = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM checkpoints WHERE consumer = 'projector'"
DISPATCHED = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM checkpoints WHERE consumer = 'dispatcher'"
HEARD = "SELECT count(*)::bigint AS n FROM endpoint_backfills"
RECORDED = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM delivery_checkpoints WHERE consumer = 'recorder'"


def run(stack: Stack) -> list[dict[str, object]]:
    """Dispatch events that each ten of many endpoints ask for; then record attempts."""
    stack.down(delete_data=True)
    stack.up()
    return [_dispatch(stack), _record(stack)]


def _dispatch(stack: Stack) -> dict[str, object]:
    """Let a dispatcher hear of the endpoints, fill and project the topic, and start the dispatcher again."""
    agents = [uuid5(NAMESPACE, str(number)) for number in range(ENDPOINTS // MATCHES)]
    with clean_database(stack, **LOCAL) as stage:
        asyncio.run(topics.apply(stage.settings))
        urls = ["http://127.0.0.1:9/hooks"] * ENDPOINTS
        filters = [{"agent_id": str(agents[number % len(agents)])} for number in range(ENDPOINTS)]
        asyncio.run(add_endpoints(stage, urls, filters))
        dispatcher = "-m", "operations", "dispatcher"
        with process(stage, *dispatcher):
            wait_until(lambda: stage.number(HEARD) == ENDPOINTS * PARTITIONS, "all are heard of", TIMEOUT_SECONDS)
        asyncio.run(_publish_events(stage, agents))
        with process(stage, "-m", "benchmarks.variant", "plant"):
            wait_until(lambda: stage.number(LOGGED) == EVENTS, "all are logged", TIMEOUT_SECONDS)
        with process(stage, *dispatcher) as running:
            return {
                "name": f"dispatcher, {ENDPOINTS:,} endpoints, {MATCHES} matches an event",
                **_rate(stage, running, DISPATCHED, EVENTS, deliveries_each=MATCHES),
            }


def _record(stack: Stack) -> dict[str, object]:
    generation = new_generation()
    with clean_database(stack, **LOCAL) as stage:
        asyncio.run(make_topics(stage, generation))
        asyncio.run(publish_records(stage, ATTEMPTS_TOPIC + generation, _attempts()))
        with deliverer(stage, generation) as running:
            return {"name": "recorder of attempts", **_rate(stage, running, RECORDED, ATTEMPTS)}


def _rate(
    stage: Stage, running: psutil.Process, statement: str, count: int, deliveries_each: int = 0
) -> dict[str, object]:
    """Return records a second and processor time a record, from the first that are done to the last."""

    def cpu() -> dict[str, float]:
        return stage.cpu_seconds() | {"process": tree_cpu_seconds(running.pid)}

    wait_until(lambda: stage.number(statement), "the first ones are done", TIMEOUT_SECONDS)
    first = stage.number(statement)
    started, before = time.perf_counter(), cpu()
    wait_until(lambda: stage.number(statement) == count, "all are done", TIMEOUT_SECONDS)
    seconds, after = time.perf_counter() - started, cpu()
    done = count - first
    row: dict[str, object] = {"records_per_second": round(done / seconds)}
    if deliveries_each:
        row["deliveries_per_second"] = round(deliveries_each * done / seconds)
    return row | {f"{part}_us_each": round((spent - before[part]) / done * 1e6, 1) for part, spent in after.items()}


async def _publish_events(stage: Stage, agents: list[UUID]) -> None:
    now = datetime.now(UTC)
    async with EventProducer(stage.settings, topics=(EVENTS_TOPIC,)) as producer:
        await producer.publish_many(
            (
                AgentAvailable(
                    event_id=uuid4(), agent_id=agents[number % len(agents)], occurred_at=now, available=bool(number % 2)
                )
                for number in range(EVENTS)
            ),
            source="urn:bench",
        )


def _attempts() -> Iterator[DeliveryAttempted]:
    now, endpoint_ids = datetime.now(UTC), [uuid4() for _ in range(200)]
    for number in range(ATTEMPTS):
        yield DeliveryAttempted(
            event_id=uuid4(), delivery_id=uuid4(), endpoint_id=endpoint_ids[number % 200],
            type="genesis.agent.available", occurred_at=now, entity_id=uuid4(), stream="live", source_partition=0,
            source_offset=number, source_rank=0, attempt=1, hop=0, attempted_at=now, duration_us=900,
            outcome="delivered", state="delivered", status_code=204, why="", request=DATA, answer=b"", token=1,
        )  # fmt: skip
