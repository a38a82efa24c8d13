"""What a deliverer's gauges show of the deliveries that it has, and of those that it has not taken yet."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from deliveries import delivery_progress
from deliveries.circuit_breaker import BreakerPolicy
from deliveries.deliverer.delivery_process import DelivererLimits, DeliveryTopics
from deliveries.deliverer.wait_rows import WaitRow, wait_statements
from operations.services import deliverer as deliverer_service
from operations.services.deliverer import Deliverer
from projections.session import Session
from runtime.clock import FixedClock
from runtime.settings import Settings
from tests.support.delivering import PARTITIONS, add_endpoint, delivering, publish, queued
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


def rows_of(partition: int, *times: datetime | None) -> list[str]:
    """Return what stores deliveries that wait until these times, and one that waits in a topic."""
    rows = [
        WaitRow(
            delivery_id=bytes([partition, number]) * 8, endpoint_id=bytes(16), hop=1, due_at=due_at, record=record,
            entity_id=None, source_partition=0, source_offset=0, source_rank=0,
        )
        for number, (due_at, record) in enumerate([*((each, b"none") for each in times), (times[0], None)])
    ]  # fmt: skip
    return wait_statements(partition, rows, ())


async def test_gauges_show_what_waits_in_postgres(
    local: Settings, topics: DeliveryTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its own partitions; more than a bound is not counted."""
    now = datetime.now(UTC)
    before, later = now - timedelta(hours=1), now + timedelta(hours=1)
    with contextlib.closing(Session(local.database_address("deliverer"))) as session:
        session.script(*rows_of(0, before, later, None), *rows_of(1, later), *rows_of(PARTITIONS, before, later))

    def counted() -> list[float | None]:
        return [REGISTRY.get_sample_value("plant_deliverer_rows", {"stage": each}) for each in ("due", "waiting")]

    monkeypatch.setattr(deliverer_service, "COUNT_EVERY_SECONDS", 0.05)
    async with delivering(local, topics):
        await wait_until_async(lambda: counted() == [1, 3], lambda: f"both partitions are counted: {counted()}")
        monkeypatch.setattr(delivery_progress, "COUNTED_MAX", 2)
        await wait_until_async(lambda: counted() == [1, 2], lambda: f"two are counted: {counted()}")


async def test_a_gauge_shows_what_is_not_read_yet(local: Settings, topics: DeliveryTopics) -> None:
    """By topic, of all partitions: where no more deliveries are taken, the rest wait in Kafka."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await answered.wait()
        return web.Response(status=204)

    def lag(deliverer: Deliverer) -> list[float | None]:
        deliverer.update_gauges()
        names = topics.deliveries, topics.retries[0], topics.attempts
        return [REGISTRY.get_sample_value("plant_deliverer_lag", {"topic": each}) for each in names]

    async with receiver() as there:
        there.replace_handler(hang)
        endpoint_id = await add_endpoint(local, f"http://127.0.0.1:{there.port}/")
        deliverer = Deliverer(local, topics)
        deliverer.process = msgspec.structs.replace(deliverer.process, limits=DelivererLimits(unfinished_max=1))
        try:
            await deliverer.start()
            await publish(local, topics.deliveries, [queued(endpoint_id, 0)])
            await wait_until_async(asked.is_set, "it takes no more")
            await publish(local, topics.deliveries, [queued(endpoint_id, offset) for offset in range(1, 4)])
            await wait_until_async(lambda: lag(deliverer) == [3, 0, 0], lambda: f"three wait: {lag(deliverer)}")
            answered.set()
            await wait_until_async(lambda: lag(deliverer) == [0, 0, 0], lambda: f"none waits: {lag(deliverer)}")
        finally:
            answered.set()
            await deliverer.stop()
