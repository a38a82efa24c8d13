"""What goes before and after attempts: a dispatcher with many endpoints, and the recorder of attempts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

import psutil

from benchmarks.delivering import DATA, LOCAL, PARTITIONS, add_endpoints, deliverer, make_topics, new_generation
from benchmarks.stage import Stage, clean_database, process, tree_cpu_seconds
from devstack.stack import Stack
from schemas import codec
from schemas.delivery_records import ATTEMPTS_TOPIC, DeliveryAttempted
from schemas.events import AgentAvailable
from streams import topics
from streams.producer import EventProducer
from streams.topics import EVENTS_TOPIC

EVENTS = 40_000
ENDPOINTS = 10_000
MATCHES = 10
ATTEMPTS = 200_000
SENT_TOGETHER = 10_000
NAMESPACE = UUID("6b0e6c1c-51d0-4f0e-8a1c-3f1f4f5f2f67")
TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 0.05

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
            _wait(lambda: _number(stage, HEARD), ENDPOINTS * PARTITIONS)
        asyncio.run(_publish_events(stage, agents))
        with process(stage, "-m", "benchmarks.variant", "plant"):
            _wait(lambda: _number(stage, LOGGED), EVENTS)
        with process(stage, *dispatcher) as running:
            return {
                "name": f"dispatcher, {ENDPOINTS:,} endpoints, {MATCHES} matches an event",
                **_rate(stage, running, DISPATCHED, EVENTS, deliveries_each=MATCHES),
            }


def _record(stack: Stack) -> dict[str, object]:
    generation = new_generation()
    with clean_database(stack, **LOCAL) as stage:
        asyncio.run(make_topics(stage, generation))
        asyncio.run(_publish_attempts(stage, ATTEMPTS_TOPIC + generation))
        with deliverer(stage, generation) as running:
            return {"name": "recorder of attempts", **_rate(stage, running, RECORDED, ATTEMPTS)}


def _rate(
    stage: Stage, running: psutil.Process, statement: str, count: int, deliveries_each: int = 0
) -> dict[str, object]:
    """Return records a second and processor time a record, from the first that are done to the last."""

    def cpu() -> dict[str, float]:
        return stage.cpu_seconds() | {"process": tree_cpu_seconds(running.pid)}

    first = _wait(lambda: _number(stage, statement), 1)
    started, before = time.perf_counter(), cpu()
    _wait(lambda: _number(stage, statement), count)
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


async def _publish_attempts(stage: Stage, topic: str) -> None:
    async with EventProducer(stage.settings, topics=(topic,)) as producer:
        publishes = []
        for attempted in _attempts():
            key = str(attempted.endpoint_id).encode()
            publishes.append(producer.submit_record(topic, key, codec.encode_checked(attempted), []))
            if len(publishes) == SENT_TOGETHER:
                await producer.await_each(publishes)
                publishes = []
        await producer.await_each(publishes)


def _attempts() -> Iterator[DeliveryAttempted]:
    now, endpoint_ids = datetime.now(UTC), [uuid4() for _ in range(200)]
    for number in range(ATTEMPTS):
        yield DeliveryAttempted(
            event_id=uuid4(), delivery_id=uuid4(), endpoint_id=endpoint_ids[number % 200],
            type="genesis.agent.available", occurred_at=now, entity_id=uuid4(), stream="live", source_partition=0,
            source_offset=number, source_rank=0, attempt=1, hop=0, attempted_at=now, duration_us=900,
            outcome="delivered", state="delivered", status_code=204, why="", request=DATA, answer=b"", token=1,
        )  # fmt: skip


def _wait(count: Callable[[], int], least: int) -> int:
    """Return the count once it is at least so much. Raises TimeoutError."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (found := count()) < least:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found} of {least} are done")
        time.sleep(POLL_SECONDS)
    return found


def _number(stage: Stage, statement: str) -> int:
    ((number,),) = stage.query(statement)
    assert isinstance(number, int)
    return number
