"""Dead letters of one cause, redriven: a list, its repair, and a redrive that waits until workers have applied it.

Each entity has a rating of nine stars and one of three behind it, which is parked. The commands are processes, and a
worker is another one, as in production.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import psutil
from confluent_kafka import Producer

from benchmarks.stage import Stage, clean_database, process
from devstack.stack import Stack
from schemas.events import AgentRated
from streams import topics
from tests.support.made_events import unchecked_value
from tests.support.waiting import wait_until

COUNT = 10_000
LISTED = b'"rating":9'
REPAIRED = b'"rating":5'

DISPOSITIONS = """
SELECT count(*) FILTER (WHERE disposition = 'poison') AS poison,
    count(*) FILTER (WHERE disposition = 'parked') AS parked
FROM log_records WHERE topic = 'genesis.events'
"""
RATINGS = (
    "SELECT coalesce(sum(ratings), 0)::bigint AS n, coalesce(sum(rating_sum), 0)::bigint AS s FROM ratings_v1.ratings"
)


def run(stack: Stack) -> list[dict[str, object]]:
    """Fill an empty topic, let a worker log it, and redrive all of it."""
    stack.down(delete_data=True)
    stack.up()
    with clean_database(stack) as stage, tempfile.TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        _fill(stage)
        with process(stage, "-m", "operations", "worker"):
            wait_until(lambda: stage.query(DISPOSITIONS) == [(COUNT, COUNT)], "all is poison or parked")
            return [_redrive(stage, Path(folder))]


def _redrive(stage: Stage, folder: Path) -> dict[str, object]:
    dead, repaired = folder / "dead.jsonl", folder / "repaired.jsonl"
    started = time.perf_counter()
    with dead.open("wb") as out:
        list_mb = _command(stage, "list", "--output", "jsonl", stdout=out)
    listed = time.perf_counter()
    repaired.write_bytes(dead.read_bytes().replace(LISTED, REPAIRED))
    published = time.perf_counter()
    redrive_mb = _command(stage, "redrive", "--repaired", str(repaired), "--execute", "--wait")
    done = time.perf_counter()
    assert stage.query(RATINGS) == [(2 * COUNT, 8 * COUNT)]
    return {
        "name": "dead letters of one cause, one parked event behind each",
        "dead_letters": COUNT,
        "list_seconds": round(listed - started, 2),
        "redrive_and_wait_seconds": round(done - published, 2),
        "seconds": round(done - started, 2),
        "list_peak_mb": list_mb,
        "redrive_peak_mb": redrive_mb,
    }


def _command(stage: Stage, *arguments: str, stdout: object = None) -> int:
    """Run a command to its end; return the most memory that it had, in MB."""
    command = [sys.executable, "-m", "operations", "dead-letters", *arguments]
    with subprocess.Popen(command, env=dict(stage.environ), stdout=stdout) as running:  # type: ignore[call-overload]
        peak, watched = 0, psutil.Process(running.pid)
        while running.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.02)
    if running.returncode:
        raise RuntimeError(f"plant dead-letters {arguments[0]} ended with {running.returncode}")
    return round(peak / 1e6)


def _fill(stage: Stage) -> None:
    producer = Producer({"bootstrap.servers": stage.settings.kafka_address(), "partitioner": "murmur2_random"})
    for key, value, identity in _records():
        headers = [("ce_type", AgentRated.event_type), ("ce_id", str(identity))]
        producer.produce("genesis.events", value, key, headers=headers)
        producer.poll(0)
    producer.flush()


def _records() -> Iterator[tuple[bytes, bytes, UUID]]:
    """Yield key, value and event id: a rating beyond the limit of each entity, and later one within it."""
    for stars in (9, 3):
        for number in range(COUNT):
            fields = {"event_id": uuid4(), "agent_id": UUID(int=number + 1), "occurred_at": datetime.now(UTC)}
            fields |= {"rater_id": UUID(int=1), "rating": stars, "skill_id": None}
            yield str(UUID(int=number + 1)).encode(), unchecked_value(AgentRated, fields), fields["event_id"]  # type: ignore[misc]
