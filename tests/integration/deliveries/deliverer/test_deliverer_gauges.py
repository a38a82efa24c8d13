"""What a deliverer's gauges show of the deliveries that it has."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
from aiohttp import web
from prometheus_client import REGISTRY

from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryTopics
from operations.services.deliverer import Deliverer
from runtime.clock import FixedClock
from runtime.settings import Settings
from tests.support.delivering import PARTITIONS, add_endpoint, publish, queued
from tests.support.receivers import receiver
from tests.support.waiting import wait_until_async

GAUGES = {
    "under way": ("plant_deliverer_attempts_under_way", {"pace": "quick"}),
    "slow": ("plant_deliverer_attempts_under_way", {"pace": "slow"}),
    "due": ("plant_deliverer_waiting_deliveries", {"stage": "due"}),
    "waiting": ("plant_deliverer_waiting_deliveries", {"stage": "waiting"}),
    "open": ("plant_deliverer_breakers", {"state": "open"}),
    "half open": ("plant_deliverer_breakers", {"state": "half_open"}),
    "partitions": ("plant_deliverer_partitions", {}),
}


def shown(deliverer: Deliverer) -> dict[str, float | None]:
    deliverer.update_gauges()
    return {each: REGISTRY.get_sample_value(*gauge) for each, gauge in GAUGES.items()}


async def test_gauges_show_what_is_due_waits_and_is_under_way(local: Settings, topics: DeliveryTopics) -> None:
    """And whose breaker is open. The deliverer's clock stands still: nothing of it passes meanwhile."""
    answered, failures = asyncio.Event(), BreakerPolicy().attempts_min

    async def hang(_: web.Request) -> web.Response:
        await answered.wait()
        return web.Response(status=204)

    async with receiver() as hanging, receiver() as failing:
        hanging.replace_handler(hang)
        failing.answer = lambda: web.Response(status=500)  # type: ignore[assignment]
        slow, bad = [await add_endpoint(local, f"http://127.0.0.1:{each.port}/") for each in (hanging, failing)]
        sent = [
            *(queued(slow, offset) for offset in range(3)),
            *(queued(bad, offset) for offset in range(3, 3 + failures)),
        ]
        deliverer = Deliverer(local, topics, FixedClock(datetime.now(UTC)))
        at_once = DelivererLimits(write_seconds=0.0)  # another round would never come
        deliverer.process = msgspec.structs.replace(deliverer.process, limits=at_once)
        try:
            await deliverer.start()
            await publish(local, topics.deliveries, sent)
            expected = {
                "under way": 1, "slow": 0, "due": 2, "waiting": failures, "open": 1, "half open": 0,
                "partitions": PARTITIONS * (2 + len(topics.retries)),
            }  # fmt: skip
            await wait_until_async(lambda: shown(deliverer) == expected, lambda: f"{shown(deliverer)}")
            answered.set()
            done = {**expected, "under way": 0, "due": 0}
            await wait_until_async(lambda: shown(deliverer) == done, "what was due is done")
        finally:
            answered.set()
            await deliverer.stop()
