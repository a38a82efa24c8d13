"""Dead letters redriven: an order of all of them, from its giving to the last one that its subscriber has taken.

Live events come meanwhile, and some before: they must not wait behind the order. Deliveries are made dead by changing
the rows of delivered ones, since six attempts of each would take longer than all the rest.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

from benchmarks.delivering import LOCAL, Receiver, add_endpoints, delays_ms, receiver, wait_until_received, webhook_id
from benchmarks.stage import Stage, clean_database, process
from deliveries.endpoints import EndpointId
from deliveries.redrive.selection import RedriveSelection
from devstack.stack import Stack
from operations.cli.redrive_options import RATE_PER_SECOND
from schemas.events import AgentAvailable
from streams import topics
from streams.producer import EventProducer
from tests.support.redriving import open_redrives, redrive_order
from tests.support.waiting import wait_until

DEAD_LETTERS = 10_000
LIVE_RATE = 50
LIVE_SECONDS = 10.0
UNLIMITED = 100_000
TIMEOUT_SECONDS = 300.0
SOURCE = "plant/benchmarks"
DELIVERED = "SELECT count(*)::bigint AS n FROM webhook_deliveries WHERE state = 'delivered'"


def run(stack: Stack) -> list[dict[str, object]]:
    """Redrive at the rate that the command has by default, and as fast as deliverers take it."""
    stack.down(delete_data=True)
    stack.up()
    with receiver() as there, clean_database(stack, **LOCAL) as stage:
        asyncio.run(topics.apply(stage.settings))
        (endpoint_id,) = asyncio.run(add_endpoints(stage, [there.url("good")]))
        with (
            process(stage, "-m", "operations", "worker"),
            process(stage, "-m", "operations", "dispatcher"),
            process(stage, "-m", "operations", "deliverer"),
        ):
            asyncio.run(_publish(stage, DEAD_LETTERS, None))
            wait_until(lambda: stage.number(DELIVERED) == DEAD_LETTERS, "all are delivered", TIMEOUT_SECONDS)
            there.take_received()
            alone = asyncio.run(_publish_for(stage, LIVE_SECONDS))
            received = wait_until_received(there, len(alone), TIMEOUT_SECONDS)
            recorded = DEAD_LETTERS + len(alone)
            wait_until(lambda: stage.number(DELIVERED) == recorded, "all are recorded", TIMEOUT_SECONDS)
            quiet = delays_ms(alone, received, endpoint_id)
            return [_redrive(stage, there, endpoint_id, rate, quiet) for rate in (RATE_PER_SECOND, UNLIMITED)]


def _redrive(
    stage: Stage, there: Receiver, endpoint_id: EndpointId, rate: int, quiet: list[float]
) -> dict[str, object]:
    live_before = stage.number(DELIVERED)
    stage.execute(
        "UPDATE webhook_deliveries SET state = 'dead' WHERE id IN"
        f" (SELECT id FROM webhook_deliveries ORDER BY source_offset, id LIMIT {DEAD_LETTERS})"
    )
    there.take_received()
    began_at = time.monotonic()
    number, sent = asyncio.run(_order_beside_live(stage, rate))
    received = wait_until_received(there, DEAD_LETTERS + len(sent), TIMEOUT_SECONDS)
    live_ids = {str(webhook_id(event_id, endpoint_id)) for event_id in sent}
    last_at = max(at for each, at in received.items() if each not in live_ids)
    live = delays_ms(sent, received, endpoint_id)
    wait_until(lambda: stage.number(DELIVERED) == live_before + len(sent), "all are recorded", TIMEOUT_SECONDS)
    return {
        "name": f"{DEAD_LETTERS:,} dead letters, {rate:,} a second allowed",
        "redrive": number,
        "seconds": round(last_at - began_at, 1),
        "redriven_per_second": round(DEAD_LETTERS / (last_at - began_at)),
        "live_events": len(sent),
        "live_p50_ms": _at(live, 0.5),
        "live_p99_ms": _at(live, 0.99),
        "live_alone_p50_ms": _at(quiet, 0.5),
        "live_alone_p99_ms": _at(quiet, 0.99),
    }


async def _order_beside_live(stage: Stage, rate: int) -> tuple[int, dict[UUID, float]]:
    """Order all dead letters, and publish live events until all of it is on Kafka."""
    async with open_redrives(stage.settings) as redrives:
        number = await redrives.order(redrive_order(rate_per_second=rate), RedriveSelection())
        sent: dict[UUID, float] = {}
        while (await redrives.find(number)).state == "running":
            sent |= await _publish_for(stage, 2.0)
        return number, sent


async def _publish_for(stage: Stage, seconds: float) -> dict[UUID, float]:
    return await _publish(stage, int(seconds * LIVE_RATE), 1 / LIVE_RATE)


async def _publish(stage: Stage, count: int, every_seconds: float | None) -> dict[UUID, float]:
    """Publish events, at a rate or at once; return when each was sent, by the monotonic clock."""
    sent: dict[UUID, float] = {}
    async with EventProducer(stage.settings, topics=("genesis.events",)) as producer:
        started = time.monotonic()
        publishes = []
        for number in range(count):
            if every_seconds is not None:
                await asyncio.sleep(max(0.0, started + number * every_seconds - time.monotonic()))
            event = AgentAvailable(event_id=uuid4(), agent_id=uuid4(), occurred_at=datetime.now(UTC), available=True)
            sent[event.event_id] = time.monotonic()
            publishes.append(asyncio.ensure_future(producer.publish(event, source=SOURCE)))
            if len(publishes) == 1000:
                await asyncio.gather(*publishes)
                publishes.clear()
        await asyncio.gather(*publishes)
    return sent


def _at(delays: list[float], share: float) -> float:
    return round(delays[int(len(delays) * share)], 1)
