"""The worker's memory over two million events: it must be flat."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.stage import PARTITIONS, clean_database, process
from devstack.stack import Stack
from projections.session import Session

SETTLED = 0.25
"""Memory is compared from here on: by then every buffer has had its largest batch."""


MANY_PARTITIONS = 48


def run_many_partitions(stack: Stack, count: int) -> list[dict[str, object]]:
    """Project a topic of many partitions that are all behind, and return the most memory that the worker takes.

    Once with an empty log, and once with as many known ids as a full one leaves: open ranges of
    `PLANT_FULL_RANGE_IDS` ids, and filters up to the budget.
    """
    return [
        {
            "name": f"worker memory, {MANY_PARTITIONS} partitions",
            "what": f"peak while it catches up on all of them, {what}",
            "events_counted": count,
            "peak_mb": max(rss for _, rss in _watch(stack, count, MANY_PARTITIONS, variant)) / 1e6,
        }
        for what, variant in (("empty log", "plant"), ("open ranges full", "full ranges"))
    ]


def run(stack: Stack, count: int) -> dict[str, object]:
    """Project a full topic of `count` events and watch the worker's resident memory."""
    samples = _watch(stack, count, PARTITIONS)
    return {
        "name": "worker memory",
        "what": "peak of the first and second half after a quarter of the events",
        "events_counted": count,
        **growth(samples, count),
    }


def growth(samples: Sequence[tuple[int, int]], count: int) -> dict[str, float]:
    """Return the peaks of both halves, once SETTLED of the count is done, and by how much the second is higher.

    A sample is a number of events and the resident memory in bytes.
    """
    settled = [rss for seen, rss in samples if seen >= count * SETTLED]
    half = len(settled) // 2
    first, last = max(settled[:half]), max(settled[half:])
    return {"first_half_mb": first / 1e6, "second_half_mb": last / 1e6, "growth_percent": (last / first - 1) * 100}


def _watch(stack: Stack, count: int, partitions: int, variant: str = "plant") -> list[tuple[int, int]]:
    """Return the worker's resident memory with the number of events that it had projected, all along."""
    samples: list[tuple[int, int]] = []
    settings = {"PLANT_TOPIC_PARTITIONS": str(partitions)}
    with clean_database(stack, **settings) as stage, process(stage, "-m", "benchmarks.variant", variant) as worker:
        session = Session(stage.superuser_url)
        try:
            done = 0
            deadline = time.monotonic() + 600
            while done < count:
                if time.monotonic() > deadline:
                    raise TimeoutError("the worker did not get through the topic in time")
                time.sleep(0.2)
                total = "SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints WHERE consumer = 'projector'"
                done = int(session.query(total)[0][0])
                samples.append((done, worker.memory_info().rss))
        finally:
            session.close()
    return samples
