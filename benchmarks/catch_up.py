"""Catching up: how fast one worker projects a topic that is full, and what each guarantee costs.

Side by side in one run, on the same topic: Plant with everything on, Plant with one guarantee left out at a time, and
a stock Faust agent with SQLAlchemy, a transaction an event, doing the plain part of the same job (log row and upsert,
no chain, no repeat check). Workers with more read models, and the stock agent again, get a topic in which each of these
models has work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.stage import PARTITIONS, Stage, clean_database, process, tree_cpu_seconds
from devstack.stack import Stack
from runtime.settings import Settings, load_settings
from streams import topics
from tests.support.load import events, events_of_all_models, fill

TOPIC = "genesis.events"
ALL_MODELS_TOPIC = "genesis.events-2"
AGENTS = 50_000
VARIANTS: dict[str, str] = {
    "plant": "log, chain, repeat check, agents model, checkpoint; fsync on",
    "without repeat check": "no event id is looked up or kept",
    "without chain": "no hashing: each record has the same hash",
    "without read model": "no staging, no apply.sql",
    "without durable commit": "synchronous_commit = off",
}
MORE_MODELS: dict[str, str] = {
    "one model": "agents alone, of a topic in which every model has work",
    "three models": "skills and ratings as well",
    "four models": "activity as well",
    "five models": "marketplace as well: profiles, skills, standings, words of the catalogue",
    "registry": "the entity tables alone, triggers and a version an event; batches of 500, the first 30 s",
}
REGISTRY_SECONDS = 30.0
"""How long the registry is measured: it is some fifty times as slow as the others, and a rate needs no more.

Its batches are small, or none would be committed by then."""
WARM = 0.1
"""The first and last tenth of the events are left out of the rate."""


def fill_topic(stack: Stack, count: int, seed: int = 1, partitions: int = PARTITIONS) -> None:
    """Make the topic and put `count` seeded events on it."""
    settings = _settings(stack, partitions)
    asyncio.run(topics.apply(settings))
    fill(settings, TOPIC, events(count, agents=AGENTS, seed=seed))


def fill_for_all_models(stack: Stack, count: int) -> None:
    """Make another topic, and put `count` seeded events on it that concern every read model."""
    settings = _settings(stack)
    made = msgspec.structs.replace(topics.CATALOGUE[0], name=ALL_MODELS_TOPIC)
    asyncio.run(topics.apply(settings, catalogue=(made, *topics.CATALOGUE[1:])))
    fill(settings, ALL_MODELS_TOPIC, events_of_all_models(count, agents=AGENTS))


def end_offsets(stack: Stack) -> int:
    """Return how many records the topic holds."""
    consumer = Consumer({"bootstrap.servers": _settings(stack).kafka_address(), "group.id": "benchmark"})
    try:
        asyncio.run(topics.apply(_settings(stack)))
        places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        deadline = time.monotonic() + 20
        while True:
            try:
                return sum(consumer.get_watermark_offsets(place)[1] for place in places)
            except KafkaException:  # a topic that has just been made has no leaders for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    finally:
        consumer.close()


def _settings(stack: Stack, partitions: int = PARTITIONS) -> Settings:
    return load_settings({**stack.environ, "PLANT_TOPIC_PARTITIONS": str(partitions)})


def plant(
    stack: Stack, variant: str, count: int, topic: str = TOPIC, check: Callable[[Stage], None] | None = None
) -> dict[str, object]:
    """One worker, from the first event of a topic to the last.

    `check` looks at the database then; without it every event has to be applied.
    """
    is_registry = variant == "registry"
    settings = {"PLANT_WORKER_BATCH_MAX_RECORDS": "500"} if is_registry else {}
    with clean_database(stack, **settings) as stage:
        if variant == "without durable commit":
            stage.execute("ALTER ROLE plant_writer SET synchronous_commit = off")
        if is_registry:  # an operator turns it on
            stage.execute("UPDATE read_model_builds SET paused = false WHERE projection = 'registry'")
        stage.execute("CHECKPOINT")
        total, seconds = (None, REGISTRY_SECONDS) if is_registry else (count, 600.0)
        try:
            with process(stage, "-m", "benchmarks.variant", variant, topic) as worker:
                done = "SELECT coalesce(sum(next_offset), 0)::bigint AS n FROM checkpoints WHERE consumer = 'projector'"
                result = measured_rate(stage, worker, lambda: int(str(stage.query(done)[0][0])), total, seconds)
        finally:
            if variant == "without durable commit":
                stage.execute("ALTER ROLE plant_writer RESET synchronous_commit")
        if check is not None:
            check(stage)
        elif variant == "plant":
            applied = stage.query("SELECT count(*) AS n FROM event_stream WHERE disposition = 'applied'")
            if applied != [(count,)]:
                raise RuntimeError(f"{applied} of {count} events were applied")
        return {"name": variant, "what": (VARIANTS | MORE_MODELS)[variant], **result}


def stock_faust(stack: Stack, seconds: float, topic: str = TOPIC) -> dict[str, object]:
    """Run the stock pipeline for a while, from the same topic; a rate needs no more."""
    with clean_database(stack) as stage:
        for statement in (Path(__file__).parent / "stock_faust.sql").read_text().split(";"):
            if statement.strip():
                stage.execute(statement)
        with process(stage, "-m", "benchmarks.stock_faust", topic) as worker:
            count = "SELECT count(*) AS n FROM stock_log"
            result = measured_rate(stage, worker, lambda: int(str(stage.query(count)[0][0])), None, seconds)
        name = "stock Faust + SQLAlchemy" if topic == TOPIC else "stock, events of every model"
        return {"name": name, "what": "log row and upsert, a transaction an event", **result}


def measured_rate(
    stage: Stage, worker: psutil.Process, done: Callable[[], int], total: int | None, seconds: float = 600.0
) -> dict[str, object]:
    """Return the events a second between the first tenth and the last, and CPU per event by part."""
    start_at, stop_at = (int(total * WARM), int(total * (1 - WARM))) if total else (50, None)
    deadline = time.monotonic() + seconds + 60
    first: tuple[float, int, dict[str, float]] | None = None
    while time.monotonic() < deadline:
        time.sleep(0.1)
        count = done()
        now = (time.monotonic(), count, {**stage.cpu_seconds(), "worker": tree_cpu_seconds(worker.pid)})
        if first is None:
            first = now if count >= start_at else None
            continue
        if (stop_at and count >= stop_at) or (stop_at is None and now[0] - first[0] > seconds):
            counted = now[1] - first[1]
            cpu = {part: (now[2][part] - first[2][part]) / counted * 1e6 for part in now[2]}
            if total:
                while done() < total and time.monotonic() < deadline:
                    time.sleep(0.1)
            return {
                "events_per_second": counted / (now[0] - first[0]),
                "events_counted": counted,
                "cpu_us_per_event": {part: round(spent, 2) for part, spent in cpu.items()},
            }
    raise TimeoutError("the worker did not get through the topic in time")
