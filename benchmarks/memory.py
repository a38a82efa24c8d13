"""The worker's memory over two million events: it must be flat."""

from __future__ import annotations

import time

from benchmarks.stage import clean_database, process
from devstack.stack import Stack
from projections.session import Session

SETTLED = 0.25
"""Memory is compared from here on: by then every buffer has had its largest batch."""


def run(stack: Stack, count: int) -> dict[str, object]:
    """Project a full topic of `count` events and watch the worker's resident memory."""
    samples: list[tuple[int, int]] = []
    with clean_database(stack) as stage, process(stage, "-m", "benchmarks.variant", "plant") as worker:
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
    settled = [rss for seen, rss in samples if seen >= count * SETTLED]
    half = len(settled) // 2
    first, last = max(settled[:half]), max(settled[half:])
    return {
        "name": "worker memory",
        "what": "peak of the first and second half after a quarter of the events",
        "events_counted": count,
        "first_half_mb": first / 1e6,
        "second_half_mb": last / 1e6,
        "growth_percent": (last / first - 1) * 100,
    }
