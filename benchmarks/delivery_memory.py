"""A deliverer's memory over a million deliveries: it must be flat."""

from __future__ import annotations

import asyncio
import time

from benchmarks.delivering import (
    LOCAL,
    Receiver,
    add_endpoints,
    deliverer,
    make_topics,
    new_generation,
    publish_records,
    queued_deliveries,
    receiver,
)
from benchmarks.memory import growth
from benchmarks.stage import clean_database
from devstack.stack import Stack
from schemas.delivery_records import DELIVERIES_TOPIC

ENDPOINTS = 200
STALL_SECONDS = 120.0


def run(stack: Stack, count: int) -> dict[str, object]:
    """Deliver `count` events and watch the deliverer's resident memory."""
    with receiver() as there:
        samples = _watch(stack, there, count)
    return {
        "name": "deliverer memory",
        "what": "peak of the first and second half after a quarter of the deliveries",
        "deliveries": count,
        **growth(samples, count),
    }


def _watch(stack: Stack, there: Receiver, count: int) -> list[tuple[int, int]]:
    """Return the deliverer's resident memory with the number of deliveries that it had made, all along."""
    samples: list[tuple[int, int]] = []
    generation = new_generation()
    with clean_database(stack, **LOCAL) as stage:
        asyncio.run(make_topics(stage, generation))
        endpoint_ids = asyncio.run(add_endpoints(stage, [there.url("good")] * ENDPOINTS))
        records = queued_deliveries(endpoint_ids, 0, count)
        asyncio.run(publish_records(stage, DELIVERIES_TOPIC + generation, records))
        with deliverer(stage, generation) as process:
            done, moved_at = 0, time.monotonic()
            while done < count:
                time.sleep(1.0)
                if accepted := len(there.take_received()):
                    done, moved_at = done + accepted, time.monotonic()
                elif time.monotonic() > moved_at + STALL_SECONDS:
                    raise TimeoutError(f"deliveries stand still at {done} of {count}")
                samples.append((done, process.memory_info().rss))
    return samples
