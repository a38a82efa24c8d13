"""Changing keys while a producer sends: not one of its requests may be refused.

A producer sends at a steady rate through one ingress process. Its key is changed several times with a short overlap, as
`plant keys rotate` does it: v1 and v1a in turns, and in turns it signs with both keys meanwhile, or goes over to the
new one a moment after it was made.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.ingress import wait_ready
from benchmarks.stage import clean_database, process
from devstack.stack import Stack
from runtime.settings import Settings
from signing.signatures import Scheme
from streams import topics
from tests.support.steady_load import Sign, SteadyLoad, new_signer

PRODUCER = "rotating"
RATE = 500
ROTATIONS = 6
OVERLAP_SECONDS = 4.0
REACHED_SECONDS = 2.0
"""A change of keys has reached every running process by then."""


def run(stack: Stack, *, rate: int = RATE, rotations: int = ROTATIONS) -> list[dict[str, object]]:
    """Requests, refusals and times to the answer, at `rate` a second over `rotations` changes of key."""
    with clean_database(stack) as stage, TemporaryDirectory() as folder:
        asyncio.run(topics.apply(stage.settings))
        ready = Path(folder) / "ready.json"
        first: dict[Scheme, Sign] = {
            scheme: asyncio.run(new_signer(stage.settings, PRODUCER, scheme, None)) for scheme in ("v1", "v1a")
        }
        with process(stage, "-m", "operations", "ingress", "--port", "0", "--ready-file", str(ready)):
            return [asyncio.run(_measure(wait_ready(ready), stage.settings, first, rate, rotations))]


async def _measure(
    url: str, settings: Settings, signers: dict[Scheme, Sign], rate: int, rotations: int
) -> dict[str, object]:
    load = SteadyLoad(url, rate, signers["v1"])
    started = time.monotonic()
    async with load.running():
        await asyncio.sleep(1)
        for number in range(rotations):
            scheme: Scheme = "v1" if number % 2 == 0 else "v1a"
            old = signers[scheme]
            load.signers = [old]
            new = await new_signer(settings, PRODUCER, scheme, timedelta(seconds=OVERLAP_SECONDS))
            if number % 4 < 2:
                load.signers = [new, old]
            await asyncio.sleep(REACHED_SECONDS)
            load.signers = [new]
            signers[scheme] = new
            await asyncio.sleep(OVERLAP_SECONDS - REACHED_SECONDS + 1)  # the old key has expired by now
    seconds = time.monotonic() - started
    times = sorted(load.milliseconds)
    return {
        "name": "keys are changed under load",
        "rotations": rotations,
        "requests": load.answers.total(),
        "requests_per_second": round(load.answers.total() / seconds),
        "refused": load.refused,
        "answers": dict(load.answers),
        "p50_ms": statistics.median(times),
        "p99_ms": times[int(len(times) * 0.99)],
    }
