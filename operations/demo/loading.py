"""The demo's first turn: everything is published, and followed until it is projected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from database.connector import Database, connect
from devstack.errors import tail
from operations.demo.display import Display
from operations.demo.errors import DemoFailed
from operations.demo.messages import Message
from operations.demo.outcome import Published
from operations.demo.publishing import DemoPublisher, DemoTally
from operations.demo.services import DemoServices
from projections import log_progress
from runtime.settings import Settings
from streams.topics import EVENTS_TOPIC

POLL_SECONDS: Final = 0.1
STALL_TIMEOUT_SECONDS: Final = 30.0


async def publish_and_follow(
    settings: Settings, services: DemoServices, publisher: DemoPublisher, tally: DemoTally,
    phases: Sequence[Sequence[Message]], *, run: int, seed: int,
) -> Published:  # fmt: skip
    """Publish phase after phase, and return once all of it is projected. Raises DemoFailed."""
    total = sum(map(len, phases))
    database = connect(settings, "auditor")
    try:
        with Display(total, tally) as display:
            sending = asyncio.create_task(_in_order(publisher, phases))
            try:
                projected = await _follow(services, tally, database, display, sending, total)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        logged = await log_progress.dispositions(database, EVENTS_TOPIC, tally.first_offsets)
    finally:
        await publisher.close()
        await database.close()
    return Published(
        run=run,
        seed=seed,
        by_type=dict(tally.by_type),
        published=tally.published,
        published_per_second=round(tally.published / display.seconds("published"), 1),
        projected=projected,
        projected_per_second=round(projected / display.seconds("projected"), 1),
        dispositions=logged,
    )


def stalled(services: DemoServices, what: str, how_far: str) -> DemoFailed:
    """Return the error for something that has not moved for too long."""
    why = f"{how_far}; no more came in {STALL_TIMEOUT_SECONDS:.0f} s."
    return DemoFailed(what, why=why, next_step=tail(services.logs / "worker.log"))


async def _follow(
    services: DemoServices, tally: DemoTally, database: Database, display: Display, sending: asyncio.Task[None],
    total: int,
) -> int:  # fmt: skip
    """Show progress until all is sent and projected; return how much is."""
    best, grew_at = -1, time.monotonic()
    while True:
        if sending.done():
            sending.result()
        reached = await log_progress.checkpoints(database)
        projected = tally.below(
            {partition: min(both) for (topic, partition), both in reached.items() if topic == EVENTS_TOPIC}
        )
        display.show(projected)
        if sending.done() and projected >= total:
            return projected
        if projected > best or not sending.done():
            best, grew_at = projected, time.monotonic()
        services.alive()
        if time.monotonic() - grew_at > STALL_TIMEOUT_SECONDS:
            raise stalled(services, "The worker has stopped projecting.", f"{projected} of {total} are projected")
        await asyncio.sleep(POLL_SECONDS)


async def _in_order(publisher: DemoPublisher, phases: Sequence[Sequence[Message]]) -> None:
    """Publish phase after phase: an agent is onboarded before it is rated."""
    for phase in phases:
        await publisher.publish(phase)
